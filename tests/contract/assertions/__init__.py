"""Access tokens that are obtained from tokens of others."""
