"""TLS contexts: trusted certificates and client certificates (RFC 8705), cached until a file changes."""

import errno
import os
import ssl
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache

import certifi

from refresher.common import reading
from refresher.common.errors import ConfigError
from refresher.grants.record import Grant

__all__ = ["named_files", "ssl_context"]


def named_files(client: Grant, ca_file: str | None) -> list[str]:
    """Return the paths of the files that a request of ``client`` reads: keys, certificates and assertions."""
    trusted = _trusted_file(ca_file) if client.token_endpoint.startswith("https:") else None
    files = (client.private_key_file, client.client_assertion_file, client.client_cert, client.client_key, trusted)
    return [path for path in (*files, *(() if client.assertion is None else client.assertion.files)) if path]


def ssl_context(
    ca_file: str | None, *, client_cert: str | None = None, client_key: str | None = None
) -> ssl.SSLContext:
    """Return a context that trusts ``ca_file``, else ``SSL_CERT_FILE``, ``SSL_CERT_DIR``, else certifi's certificates.

    ``client_cert`` and ``client_key``: PEM files for a server that requests a client certificate. Raises
    ``ConfigError``. Building a context takes 34 ms.
    """
    trusted = _trusted_file(ca_file)
    directory = None if trusted else os.environ.get("SSL_CERT_DIR")
    try:
        # Read here and not by OpenSSL, which would wait for a FIFO or a dead mount without an end.
        contents = [
            None if path is None else reading.read_named(path).data for path in (trusted, client_cert, client_key)
        ]
        return _context(trusted, client_cert, client_key, *contents, _check_directory(directory) if directory else None)
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename or client_cert or trusted}: {error.strerror}") from None


def _trusted_file(ca_file: str | None) -> str | None:
    return ca_file or os.environ.get("SSL_CERT_FILE") or None


def _check_directory(directory: str) -> tuple[str, ...]:
    """Return the names in ``SSL_CERT_DIR``, from which OpenSSL reads certificates later. Raises ``OSError``."""
    entries = reading.list_named(directory)
    for name, mode in sorted(entries.items()):
        if mode and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError(errno.EINVAL, "it is not a regular file", f"{directory}/{name}")
    return (directory, *sorted(entries))


@lru_cache(maxsize=32)
def _context(
    trusted: str | None,
    client_cert: str | None,
    client_key: str | None,
    authorities: bytes | None,
    certificates: bytes | None,
    key: bytes | None,
    directory: tuple[str, ...] | None,
) -> ssl.SSLContext:
    with ExitStack() as copies:
        try:
            if authorities is None and directory is not None:
                context = ssl.create_default_context(capath=directory[0])
            elif authorities is None:
                context = ssl.create_default_context(cafile=certifi.where())
            else:
                context = ssl.create_default_context(cafile=copies.enter_context(_copy(authorities)))
        except ssl.SSLError:
            raise ConfigError(
                f"cannot use {trusted or 'the certificates of certifi'}: it has no valid PEM certificates"
            ) from None
        if certificates is None:
            return context
        chain = copies.enter_context(_copy(certificates))
        try:
            # Without this empty passphrase, OpenSSL would ask for one at the terminal.
            context.load_cert_chain(
                chain, None if key is None else copies.enter_context(_copy(key)), password=lambda: ""
            )
        except ssl.SSLError as error:
            key_file = client_key or client_cert
            text = f"cannot use the certificate in {client_cert}: it must be PEM, with an unencrypted key in {key_file}"
            if error.reason == "KEY_VALUES_MISMATCH":
                text = f"the key in {key_file} does not belong to the certificate in {client_cert}"
            raise ConfigError(text) from None
        return context


@contextmanager
def _copy(data: bytes) -> Iterator[str]:
    """Give OpenSSL a path to ``data``, because it takes no private key as data: in memory, and not on any disk.

    Also for authorities: as data, it would accept fewer forms of PEM than from a file, and no comment beyond ASCII.
    """
    if sys.platform == "linux":
        with os.fdopen(os.memfd_create("certificate", os.MFD_CLOEXEC), "wb") as file:
            file.write(data)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            yield file.name
