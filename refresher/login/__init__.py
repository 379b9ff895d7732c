"""Login: from an address to a grant that renews itself. With the demo, the only part that imports the MCP SDK."""
