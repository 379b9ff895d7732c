"""Mistakes in NAME and URL: the message shows the command that was probably meant."""

import re
from urllib.parse import urlsplit

import click

from refresher.cli.options import did_you_mean
from refresher.common.errors import ConfigError, ImportRefused
from refresher.oauth import urls
from refresher.operations.import_request import check_name
from shim._token import is_name

__all__ = ["check_login", "check_new_name", "name_from", "name_of_host"]


def check_new_name(ctx: click.Context, name: str) -> None:
    """Raise ``ImportRefused`` if ``name`` cannot be the name of a grant."""
    try:
        check_name(name)
    except ImportRefused as error:
        if not is_name(meant := name_from(name)):
            raise
        raise ImportRefused(f"{error}; did you mean: {did_you_mean(ctx, meant, instead_of=(name,))}") from None


def check_login(ctx: click.Context, name: str, url: str | None) -> None:
    """Raise ``ConfigError`` if NAME and URL are swapped, one of them is missing, or the URL has no scheme."""
    given = (name,) if url is None else (name, url)
    address = url
    if url is None and _is_address(name) and not is_name(name):
        problem, name, address = "NAME is missing", name_of_host(name), name
    elif url is not None and _is_address(name) and not _is_address(url):
        problem, name, address = "NAME and URL are swapped", url, name
    elif url is not None and url != url.strip():
        problem = "the URL contains spaces"
    elif url is not None and "://" not in url:
        problem = "the URL has no scheme"
    else:
        return check_new_name(ctx, name)
    address = (address or "").strip()
    scheme = "" if "://" in address else "http://" if urls.is_loopback(_host(address)) else "https://"
    meant = name_from(name), f"{scheme}{address}"
    try:
        urls.parse_origin(meant[1])
    except urls.InvalidURL as error:
        raise ConfigError(f"URL {error}") from None
    if not is_name(meant[0]):
        return check_new_name(ctx, name)
    raise ConfigError(f"{problem}; did you mean: {did_you_mean(ctx, *meant, instead_of=given)}")


def name_from(text: str) -> str:
    """Return the name of a grant that is close to ``text``; it may be empty."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.strip().lower()).strip("._-")[:64]


def _is_address(text: str) -> bool:
    return bool(re.search(r"[/:]|^\s*localhost\s*$|\.[a-z]{2,}\s*$", text, re.IGNORECASE))


def _host(address: str) -> str:
    try:
        return urlsplit(address if "://" in address else f"//{address}").hostname or ""
    except ValueError:
        return ""


def name_of_host(address: str) -> str:
    """Return the part of a host that names its owner, for example ``linear`` of ``mcp.linear.app``."""
    host = _host(address)
    if re.search(r"\d$|:|^localhost$", host):
        return "local"  # an IP address contains no name to suggest
    return host.split(".")[-2] if "." in host else host
