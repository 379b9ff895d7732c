"""What every package may use: clocks, durations, secrets, errors, text, signals."""
