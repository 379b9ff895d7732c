"""What crosses the wire to an authorization server."""
