"""When the client certificates of grants end. Their files are read here to be shown, and never for a rotation."""

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Final

from refresher.common.reading import read_ahead, read_named
from refresher.grants.record import Grant

__all__ = ["end_in", "end_of", "reading"]

_KEPT_FOR: Final = 60.0


def reading(grants: Iterable[Grant]) -> AbstractContextManager[None]:
    """Read the certificates of ``grants`` at once, for 5 s at most; inside, ``end_of`` waits for no disk."""
    return read_ahead({grant.client_cert for grant in grants if grant.client_cert is not None})


def end_of(grant: Grant) -> float | None:
    """Return when the first certificate in ``client_cert`` ends, epoch seconds; ``None`` if that is unknown."""
    return None if grant.client_cert is None else end_in(grant.client_cert)


def end_in(path: str) -> float | None:
    """Return when the first certificate of the chain in ``path`` ends; ``None`` if it cannot be read."""
    return _end_in(path, time.monotonic() // _KEPT_FOR)


@lru_cache(maxsize=4096)  # for a minute: many grants can have the same certificate
def _end_in(path: str, _minute: float) -> float | None:
    try:
        return _end(read_named(path).data)
    except OSError:
        return None


@lru_cache(maxsize=256)
def _end(data: bytes) -> float | None:
    from cryptography import x509  # 40 ms, and few grants have a certificate

    try:
        return min(each.not_valid_after_utc.timestamp() for each in x509.load_pem_x509_certificates(data))
    except ValueError:
        return None
