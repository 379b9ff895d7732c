"""A demonstration without account and network: real servers, a real daemon and a real agent, on loopback."""
