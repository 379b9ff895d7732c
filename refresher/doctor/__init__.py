"""Look for what is wrong with a set-up. It reads only: it writes, locks and removes nothing, and sends no token."""
