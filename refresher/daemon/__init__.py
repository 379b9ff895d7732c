"""The command `run`: rotate every grant in time, until stopped."""
