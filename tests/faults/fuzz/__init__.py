"""A fuzz: agents of the group do random file operations while refresher works, and no grant may be harmed."""
