"""The files on the disk: records, journal, lock, published tokens, demands."""
