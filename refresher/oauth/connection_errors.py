"""What the errors of a broken connection say. Pure."""

import re
import ssl
from collections.abc import Iterator, Sequence
from typing import Final

from refresher.common.secret import Secret, mask

__all__ = ["reason", "refuses_certificate"]

# RFC 8446 section 6.2: how a server refuses what the client has shown of itself, or that it has shown nothing.
_ABOUT_CERTIFICATE: Final = re.compile(r"ALERT_(?:\w+_)?CERTIFICATE|ALERT_UNKNOWN_CA")

_LONGEST_CHAIN: Final = 20


def reason(errors: Sequence[BaseException], known: tuple[Secret | None, ...]) -> str:
    """Return in words why it broke, without the ``known`` secrets or anything like one; ``errors``: the last first."""
    chain = list(_chain(errors))
    # A library's own error often says nothing; what made it does.
    words = mask(next((text for cause in chain if (text := str(cause))), ""), known)
    return f"{type(chain[0]).__name__}{f': {words}' if words else ''}"


def refuses_certificate(errors: Sequence[BaseException]) -> bool:
    """Whether the server has ended the TLS handshake for want of a client certificate that it accepts."""
    reasons = (cause.reason for cause in _chain(errors) if isinstance(cause, ssl.SSLError))
    return any(reason and _ABOUT_CERTIFICATE.search(reason) for reason in reasons)


def _chain(errors: Sequence[BaseException]) -> Iterator[BaseException]:
    """Yield each error and what led to it, the nearest first."""
    for last in errors:
        error: BaseException | None = last
        # Longer than any library's, and an end for a chain that leads back to itself.
        for _ in range(_LONGEST_CHAIN):
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            if error is None:
                break
            yield error
            error = error.__cause__ or error.__context__
