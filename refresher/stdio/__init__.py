"""MCP on stdin and stdout, for clients that only start programs: a bridge to a streamable HTTP server."""
