"""Basics for every package: clocks, errors, logs, secrets, signals, terminal output, text."""
