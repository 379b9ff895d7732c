"""Move in: find the logins that other programs keep, complete them, and make imports of them."""
