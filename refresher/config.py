"""Where a run finds its directories and how it talks: option over environment over file over default."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from refresher import addresses
from refresher.addresses import Address
from refresher.common.errors import ConfigError
from refresher.storage.directories import Directories
from shim._places import default_state_dir

__all__ = ["LogFormat", "Settings", "resolve"]

LogFormat = Literal["text", "json"]

_LONGEST_NUMBER: Final = 10
_PATHS: Final = ("state_dir", "tokens_dir", "demands_dir", "spill_dir", "ca_file")


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a configuration file may say; everything has a default."""

    state_dir: str | None = None
    tokens_dir: str | None = None
    demands_dir: str | None = None
    tokens_group: str | int | None = None
    spill_dir: str | None = None
    ca_file: str | None = None
    listen: str | None = None
    log_format: str | None = None
    verbose: int | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a command works with."""

    directories: Directories
    state_given: bool
    """Somebody named the state directory: then it is no accident where it is, and one where it is not."""
    ca_file: str | None
    listen: Address | None
    """Where the daemon tells how it is; ``None``: nowhere."""
    log_format: LogFormat
    verbose: int


def resolve(given: Mapping[str, Any], config: str | None) -> Settings:
    """Return the settings of a run.

    ``given``: what options and environment say, by the names of the file's keys; ``None`` is unsaid. ``config``: the
    file, which must exist if it is named. Raises ``ConfigError``.
    """
    said = _read(config)
    for key, value in given.items():
        if value is not None:
            said[key] = value
    state = Path(said.get("state_dir") or default_state_dir())
    if str(state).startswith("~"):
        raise ConfigError("there is no home directory: give --state-dir, or set HOME")
    log_format = said.get("log_format", "text")
    if log_format not in ("text", "json"):
        raise ConfigError("log_format must be 'text' or 'json'")
    return Settings(
        directories=Directories(
            state=_absolute("state_dir", state),
            tokens=_absolute("tokens_dir", said.get("tokens_dir") or state / "tokens"),
            demands=_absolute("demands_dir", said.get("demands_dir") or state / "demands"),
            # Not /tmp: it is often in memory, and what is spilled must live through a restart.
            spill=_absolute("spill_dir", said.get("spill_dir") or f"/var/tmp/refresher-{os.geteuid()}"),  # noqa: S108
            group=_group(said.get("tokens_group")),
        ),
        state_given=bool(said.get("state_dir")),
        ca_file=said.get("ca_file"),
        listen=addresses.parse(said["listen"]) if said.get("listen") else None,
        log_format="json" if log_format == "json" else "text",
        verbose=max(said.get("verbose") or 0, 0),
    )


def _read(config: str | None) -> dict[str, Any]:
    path = Path(config) if config else _default_config()
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if config:
            raise ConfigError(f"there is no configuration file {path}") from None
        return {}
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not a path"
        raise ConfigError(f"cannot read the configuration file {path}: {why}") from None
    import tomllib  # most machines have no file, and every cron run would pay for this

    try:
        said = msgspec.convert(tomllib.loads(data.decode("utf-8")), _File)
    except (ValueError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from None
    fields = {key: value for key, value in msgspec.structs.asdict(said).items() if value is not None}
    for key in _PATHS:
        if key in fields:
            # A relative path in a file means: beside that file.
            try:
                fields[key] = str(path.parent / Path(fields[key]).expanduser())
            except (RuntimeError, ValueError) as error:
                raise ConfigError(f"{path}: {key}: {error}") from None
    return fields


def _absolute(key: str, path: str | Path) -> Path:
    if "\0" in str(path):
        raise ConfigError(f"{key} is no path")
    try:
        return Path(path).absolute()
    except OSError as error:
        raise ConfigError(f"{key} is relative to a directory that is gone: {error.strerror}") from None


def _default_config() -> Path:
    # The XDG base directory specification: a relative path is to be ignored.
    base = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return (base if base.is_absolute() else Path(os.path.expanduser("~/.config"))) / "refresher/config.toml"  # noqa: PTH111  does not raise


def _group(group: str | int | None) -> int | None:
    if group is None or group == "":
        return None
    if isinstance(group, str) and not (group.isascii() and group.isdigit()):
        import grp

        try:
            return grp.getgrnam(group).gr_gid
        except (KeyError, ValueError):
            raise ConfigError(f"there is no group named {group!r}: groupadd it, or give its number") from None
    # The largest number means "leave it" to chown(2).
    if len(str(group)) > _LONGEST_NUMBER or not 0 <= int(group) < 2**32 - 1:
        raise ConfigError("tokens_group must be a group's name or number")
    return int(group)
