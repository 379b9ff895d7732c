"""Who refreshes the grants, and whether anybody answers the demands of agents."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

from refresher.common import clocks, text
from refresher.common.errors import DirectoryError
from refresher.doctor.finding import Finding, found
from refresher.grants import policy
from refresher.grants.record import Grant
from refresher.operations.grant_report import is_overdue
from refresher.storage import demands, health_socket, last_run
from refresher.storage.directories import Directories, Listing
from refresher.storage.publishing import Publisher
from shim._token import is_name

__all__ = ["check", "is_served"]

_LISTED: Final = 65_536


def is_served(directories: Directories) -> bool:
    """Whether a service of this user listens at the private socket."""
    return health_socket.is_served(directories.health_socket)


def check(
    directories: Directories, grants: Sequence[Grant], listing: Listing, *, served: bool, shared: bool = False
) -> Iterator[Finding]:
    """Check whether somebody refreshes ``grants`` and follows their demands. ``listing``: of all names.

    ``shared``: other hosts may refresh them.
    """
    renewable = [grant for grant in grants if grant.renewable and not grant.dead]
    if not shared:
        yield from _running(directories, renewable, served)
    elif overdue := [grant.name for grant in renewable if is_overdue(grant, None)]:
        yield found("not_running", f"no host refreshes: the access tokens of {text.names(overdue)} have expired")
    yield from _unanswered(directories, grants)
    yield from _unknown(directories, listing)


def _running(directories: Directories, grants: Sequence[Grant], served: bool) -> Iterator[Finding]:
    if not grants:
        return
    now = clocks.now()
    late = last_run.is_overdue(directories, now.wall)
    try:
        ago = text.span(now.wall - directories.last_run.stat().st_mtime)
    except OSError:
        ago = ""
    overdue = [grant.name for grant in grants if is_overdue(grant, late)]
    if late and served:
        yield found("not_responding", f"'refresher run' is there, and has not looked at the grants for {ago}")
    elif late:
        yield found("not_running", f"nobody has refreshed for {ago}")
    elif late is None and not served and not ago:
        yield found("not_running", "nobody has refreshed these grants yet: neither 'refresher run' nor 'run-once'")
    elif late is None and not served and overdue:
        yield found("not_running", f"nobody refreshes: the access tokens of {text.names(overdue)} have expired")


def _unanswered(directories: Directories, grants: Sequence[Grant]) -> Iterator[Finding]:
    """Find the demands that a run would follow now, and that are older than the pause between two runs."""
    pending = demands.pending(directories, {grant.name: grant for grant in grants})
    publisher, now = Publisher(directories), clocks.now()
    for grant in grants:
        if grant.name not in pending.by_name and pending.complete:
            continue
        current = publisher.current(grant)
        demanded = pending.of(grant.name, current)
        if not publisher.is_demanded(grant, demanded, current):
            continue
        if not isinstance(policy.decide(grant, now, demanded=True), policy.Rotate):
            continue  # refresher waits
        ages = [0.0]
        for generation in demanded.intersection(current):
            with suppress(OSError):
                ages.append(now.wall - (directories.demands / f"{grant.name}.{generation}").lstat().st_mtime)
        if max(ages) > last_run.RUN_LIMIT:
            what = f"an agent demanded a new token {text.span(max(ages))} ago, and nobody fetched one"
            yield found("demand_unanswered", what, f"refresher run-once {grant.name}", name=grant.name)


def _unknown(directories: Directories, listing: Listing) -> Iterator[Finding]:
    """Find demands for names that have no grant."""
    known, unknown = {*listing.all}, set[str]()
    with suppress(OSError, DirectoryError), directories.opened_demands() as place, os.scandir(place) as entries:
        for _, entry in zip(range(_LISTED), entries, strict=False):
            name, _, generation = entry.name.rpartition(".")
            if generation.isdecimal() and is_name(name) and name not in known:
                unknown.add(name)
    if unknown:
        shown = text.names(sorted(unknown))
        first = min(unknown)
        yield found(
            "demand_unknown",
            f"agents demand tokens of {shown}, and there is no such grant",
            f"refresher login {first} URL, or correct the name that the agent uses",
        )
