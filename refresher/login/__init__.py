"""Login: makes a grant from a server's address. Besides the demo, only this package imports the MCP SDK."""
