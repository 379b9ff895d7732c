"""A soak test: daemons, cron, a person, agents and random faults, and a ledger that checks every refresh token.

``tests/run --soak MINUTES [--seed N]`` runs it and prints a report. The second third of
the time is for the fuzz in ``tests/faults/fuzz``, the last for the chaos around agents in ``tests/faults/agents``.
"""
