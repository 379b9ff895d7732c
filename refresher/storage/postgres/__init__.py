"""The store in PostgreSQL: one grant has one owner among any number of hosts, by a lease for each exchange."""
