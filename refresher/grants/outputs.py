"""Outputs: an access token in other forms than its token file, as the configuration names them. Pure."""

import os.path
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from shim import FileTokenSource
from shim._token import TokenFile, is_name

__all__ = ["FileOutput", "Output", "SecretOutput", "parse", "render", "was_rendered"]

FileFormat = Literal["raw", "header", "env", "netrc"]

_FILE_KEYS: Final[dict[FileFormat, tuple[str, ...]]] = {
    "raw": (),
    "header": (),
    "env": ("variable",),
    "netrc": ("machine", "login"),
}
_OPTIONAL: Final = ("mode", "owner", "group", "namespace", "key")
_ANY_FILE: Final = ("path", "mode", "owner", "group")
_SECRET_KEYS: Final = ("secret", "namespace", "key")

_NAME_IN_CLUSTER: Final = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"
_VALUES: Final[dict[str, tuple[str, str]]] = {
    "mode": (r"0?[0-7]{3}", "a text such as '0600' or '0640'"),
    "variable": (r"[A-Za-z_][A-Za-z0-9_]*", "the name of a variable, for example LINEAR_TOKEN"),
    "machine": (r"[A-Za-z0-9.-]+", "a host name, for example git.example"),
    "login": (r"[A-Za-z0-9._~+@-]+", "a user name of letters, digits and . _ ~ + @ -"),
    "secret": (_NAME_IN_CLUSTER, "the name of a Secret"),
    "namespace": (_NAME_IN_CLUSTER, "the name of a namespace"),
    "key": (r"[A-Za-z0-9._-]{1,100}", "a key of a Secret, of at most 100 letters, digits and . _ -"),
}
"""What a value must be: a pattern and the same in words."""

_SAFE: Final = re.compile(r"(?!~)[A-Za-z0-9._~+/=-]+")
"""The tokens of RFC 6750 without a leading ~: a shell, systemd, docker, curl and Python read them without quotes."""


class FileOutput(msgspec.Struct, frozen=True, kw_only=True):
    """A file with the access token of a grant."""

    grant: str
    format: FileFormat
    path: Path
    mode: int = 0o600
    owner: str | int | None = None
    group: str | int | None = None
    variable: str = ""
    machine: str = ""
    login: str = ""

    @property
    def target(self) -> str:
        """What it writes, for messages; no two outputs have the same."""
        return str(self.path)


class SecretOutput(msgspec.Struct, frozen=True, kw_only=True):
    """A key of a Secret in the cluster that refresher runs in."""

    grant: str
    secret: str
    namespace: str | None = None
    """``None``: that of the pod."""
    key: str = "token"

    @property
    def target(self) -> str:
        """What it writes, for messages; no two outputs have the same."""
        return f"key {self.key} of the Secret {f'{self.namespace}/' if self.namespace else ''}{self.secret}"


Output = FileOutput | SecretOutput


def parse(table: Mapping[str, Any], directory: Path) -> Output:
    """Return the output of a table; a relative path begins at ``directory``.

    Raises ``ValueError`` with what is wrong as its text.
    """
    grant, form = table.get("grant"), table.get("format")
    if not isinstance(grant, str) or not is_name(grant):
        raise ValueError("grant must be the name of a grant")
    if form not in (*_FILE_KEYS, "kubernetes-secret"):
        raise ValueError(f"format must be one of {', '.join(_FILE_KEYS)}, kubernetes-secret")
    keys = _SECRET_KEYS if form == "kubernetes-secret" else (*_ANY_FILE, *_FILE_KEYS[form])
    if unknown := [key for key in table if key not in ("grant", "format", *keys)]:
        raise ValueError(f"unknown key {unknown[0]!r} of the format {form} (known: grant, format, {', '.join(keys)})")
    if missing := [key for key in keys if key not in table and key not in _OPTIONAL]:
        raise ValueError(f"the format {form} needs {missing[0]}")
    values: dict[str, Any] = {key: table[key] for key in ("grant", *keys) if key in table}
    for key, value in values.items():
        pattern, words = _VALUES.get(key, ("", ""))
        if pattern and not (isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII)):
            raise ValueError(f"{key} must be {words}")
    if form == "kubernetes-secret":
        return SecretOutput(**values)
    for key in ("owner", "group"):
        _check_account(key, values.get(key))
    values["mode"] = _mode(values.get("mode", "0600"))
    return FileOutput(**values | {"format": form, "path": _path(values["path"], directory)})


def _mode(text: str) -> int:
    mode = int(text, 8)
    if mode & ~0o644 or not mode & 0o400:
        raise ValueError("mode must let its owner read the file, nobody else write it and nobody execute it: '0640'")
    return mode


def _check_account(key: str, value: object) -> None:
    # The largest number means "unchanged" to chown(2).
    if not (
        value is None
        or (isinstance(value, str) and value and "\0" not in value)
        or (type(value) is int and 0 <= value < 2**32 - 1)
    ):
        raise ValueError(f"{key} must be a name or a number")


def _path(value: object, directory: Path) -> Path:
    if not isinstance(value, str) or not value or "\0" in value or value.endswith("/"):
        raise ValueError("path must be the path of a file")
    try:
        # Two texts of one path are one path.
        return Path(os.path.normpath(directory / Path(value).expanduser()))
    except RuntimeError:
        raise ValueError("path: there is no home directory for its '~'") from None


def render(output: FileOutput, token: TokenFile) -> bytes | None:
    """Return the content of a file; ``None`` if there is no access token, and so no file.

    Raises ``ValueError`` for a token that the programs which read this format would not read alike.
    """
    text = token.access_token
    if text is None:
        return None
    if output.format in ("env", "netrc") and not _SAFE.fullmatch(text):
        raise ValueError(
            f"its access token has a character that not all readers of {output.format} take as it is: "
            "use the format raw or header"
        )
    match output.format:
        case "raw":
            return text.encode("ascii")
        case "header":
            return f"Authorization: {FileTokenSource.authorization(token, token.origins[0])}\n".encode("ascii")
        case "env":
            return f"{output.variable}={text}\n".encode("ascii")
        case "netrc":
            return f"machine {output.machine} login {output.login} password {text}\n".encode("ascii")


def was_rendered(data: bytes, output: FileOutput) -> bool:
    """Whether a file has the form of ``output``, so that it may take the place of the file.

    The same format is not enough: a person can have a file of it with another variable or machine.
    """
    match output.format:
        case "raw":
            form = "[!-~]*"  # without a line end: an env file, or a password that a person wrote, has one
        case "header":
            form = "Authorization: (?!(?i:basic) )[!-~]+ [!-~]+\n"
        case "env":
            form = f"{re.escape(output.variable)}=[!-~]*\n"
        case "netrc":
            form = f"machine {re.escape(output.machine)} login {re.escape(output.login)} password [!-~]+\n"
    return re.fullmatch(form.encode("ascii"), data) is not None
