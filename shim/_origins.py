"""Origins: where a token may be sent. An origin has exactly one spelling."""

__all__ = ["origin_of", "origin_of_url"]

_DEFAULT_PORTS = {"https": 443, "http": 80}


def origin_of(scheme: str, host: str, port: int | None) -> str:
    """Return an origin as the token file spells it: lower case, no default port, IPv6 in brackets."""
    scheme, host = scheme.lower(), host.lower()
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"{scheme}://{host}" if port in (None, _DEFAULT_PORTS.get(scheme)) else f"{scheme}://{host}:{port}"


def origin_of_url(url: str) -> str | None:
    """Return the origin of a URL; ``None`` if another parser could find a different host in the URL."""
    from urllib.parse import urlsplit  # takes 3 ms, and only this function needs it

    # Parsers disagree about these characters: some drop them, some end the host there.
    if not url.isascii() or "\\" in url or any(char <= " " or char == "\x7f" for char in url):
        return None
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host or "@" in parts.netloc:
        return None
    shown = f"[{host}]" if ":" in host else host
    if parts.netloc.lower() not in (shown, f"{shown}:{port}"):
        return None
    return origin_of(parts.scheme, host, port)
