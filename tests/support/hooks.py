"""Hooks of a token request that record their calls."""

__all__ = ["Recording"]


class Recording:
    """Records marks and kept answers; with ``problem``, marking fails."""

    def __init__(self, problem: OSError | None = None) -> None:
        self.marks = 0
        self.answers: list[bytes] = []
        self._problem = problem

    def before_first_byte(self) -> None:
        """Count a mark."""
        self.marks += 1
        if self._problem is not None:
            raise self._problem

    def keep_answer(self, answer: bytes, at: float) -> str:
        """Record an unreadable answer."""
        assert at > 0
        self.answers.append(answer)
        return "it is kept here"
