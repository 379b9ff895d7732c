"""What can go wrong for a reader of published tokens.

::

    ShimError
    +-- TokenFileError            a token file cannot be used: absent fields, not JSON, not for this name
        +-- UnsupportedVersion    a token file of a newer contract than this library knows

Every message says what a person can do, and holds no token.
"""

__all__ = ["ShimError", "TokenFileError", "UnsupportedVersion"]


class ShimError(Exception):
    """Anything that ``shim`` raises."""


class TokenFileError(ShimError):
    """A token file cannot be used."""


class UnsupportedVersion(TokenFileError):
    """A token file was written by a newer refresher; upgrade the library in this agent."""
