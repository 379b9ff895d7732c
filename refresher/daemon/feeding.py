"""Which grants need the token of another grant, so that ``run`` looks at them when that one changes."""

from collections import defaultdict

from refresher.grants.record import Grant

__all__ = ["Feeding"]


class Feeding:
    """Knows the grants that have been inspected; for one thread. A grant without an assertion costs two look-ups."""

    def __init__(self) -> None:
        self._sources: dict[str, tuple[str, ...]] = {}
        self._fed: defaultdict[str, set[str]] = defaultdict(set)
        self._seen: dict[str, tuple[str, int, bool]] = {}
        """Of each source, the grant and the generation that were seen last, and whether it needed a person."""

    def note(self, grant: Grant) -> set[str]:
        """Note a grant as it is now; return the names that must be inspected, because it has changed."""
        sources = () if grant.assertion is None else grant.assertion.sources
        if sources != self._sources.get(grant.name, ()):
            self.forget(grant.name)
            self._sources[grant.name] = sources
            for source in sources:
                self._fed[source].add(grant.name)
        if not (fed := self._fed.get(grant.name)):
            return set()
        now = (grant.grant_id, grant.generation, grant.dead)
        before, self._seen[grant.name] = self._seen.get(grant.name), now
        return set() if before == now else set(fed)

    def forget(self, name: str) -> None:
        """Forget a grant that was removed; what it feeds stays known."""
        for source in self._sources.pop(name, ()):
            self._fed[source].discard(name)
            if not self._fed[source]:
                del self._fed[source]
                self._seen.pop(source, None)
