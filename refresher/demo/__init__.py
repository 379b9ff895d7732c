"""A demonstration without an account or a network: servers, a daemon and an agent as in production, on loopback."""
