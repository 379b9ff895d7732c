"""What an agent imports to use tokens that a refresher publishes; it never sees a refresh token."""

from shim.errors import ShimError, TokenFileError, UnsupportedVersion

__all__ = ["ShimError", "TokenFileError", "UnsupportedVersion"]
