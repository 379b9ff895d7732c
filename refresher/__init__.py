"""The owner of OAuth grants: rotates refresh tokens before they are needed and publishes access tokens."""

__all__ = ["__version__"]

__version__ = "0.1.0"
