"""Basics for every package: clocks, durations, errors, logs, secrets, signals, terminal output."""
