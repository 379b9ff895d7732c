"""Chaos around agents: callers and listeners, while connections, tokens, logins and servers fail at random by a seed."""
