"""`gateway`: agents that hold no token send their requests here; it attaches the token and forwards them."""
