"""What follows from an event: history, metrics, hooks. None of it can delay or break a rotation."""
