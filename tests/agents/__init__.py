"""Programs and frameworks of others, with the lines that ``refresher connect`` prints. ``tests/run --agents`` runs them."""
