"""What an exchange asks of its caller, remembered."""

__all__ = ["Recording"]


class Recording:
    """Hooks of an exchange; ``problem`` keeps its request from being marked."""

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
        """Keep an answer that cannot be read."""
        assert at > 0
        self.answers.append(answer)
        return "it is kept here"
