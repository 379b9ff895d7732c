"""The clients that ``refresher connect`` knows: one module for each kind."""
