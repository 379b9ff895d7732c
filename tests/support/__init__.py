"""Real counterparts for the tests: processes, servers, files."""
