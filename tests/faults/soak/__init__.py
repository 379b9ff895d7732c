"""A soak: daemons, cron, a person, agents and random faults for as long as one likes, and a ledger that misses nothing.

``tests/run --soak MINUTES [--seed N]`` plays it and prints what it survived.
"""
