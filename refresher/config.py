"""The settings of a command: an option overrides the environment, which overrides the configuration file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from refresher.common import durations
from refresher.common.addresses import Address, host_name, parse_address
from refresher.common.errors import ConfigError
from refresher.common.logs import LogFormat
from refresher.common.reading import read_named
from refresher.storage.directories import Directories
from refresher.storage.file_store import FileStore
from refresher.storage.keys import KeyRing, Source, parse_source
from shim._source import default_state_dir

if TYPE_CHECKING:
    from refresher.grants.outputs import Output
    from refresher.storage.postgres.postgres_store import PostgresStore
    from refresher.storage.store import Store

__all__ = [
    "DEFAULT_GATEWAY",
    "HOOKS",
    "HookSettings",
    "Settings",
    "resolve",
]

DEFAULT_GATEWAY: Final = "127.0.0.1:8765"

HOOKS: Final = ("on_rotated", "on_failing", "on_reauthorization_required", "on_login_ending", "on_restored")
"""The keys of commands in the table ``hooks``."""

_HOOK_TIMEOUT: Final = 30.0
_LONGEST_HOOK: Final = 3600.0

_HISTORY: Final = {"history_days": (30, 1, 36500), "history_mb": (100, 10, 1_000_000)}
"""The settings of the history: the default, and the least and the greatest value besides 0."""

_LONGEST_NUMBER: Final = 10
_LARGEST_FILE: Final = 1024 * 1024
_PATHS: Final = (
    "state_dir",
    "tokens_dir",
    "demands_dir",
    "spill_dir",
    "ca_file",
    "metrics_file",
    "page_token_file",
    "gateway_keys_file",
)
_KEY_SOURCES: Final = ("encryption_key", "previous_encryption_key", "published_key", "previous_published_key")
"""Where keys come from: ``storage/keys.py``."""

_KEYS: Final[dict[str, tuple[type, ...]]] = {
    **dict.fromkeys(_PATHS, (str,)),
    "tokens_group": (str, int),
    "listen": (str,),
    "listen_hosts": (list,),
    "gateway": (str,),
    "log_format": (str,),
    "verbose": (int,),
    "history_days": (int,),
    "history_mb": (int,),
    "store": (str,),
    **dict.fromkeys(_KEY_SOURCES, (str,)),
    "mirror": (list,),
    "hooks": (dict,),
    "outputs": (list,),
}
_KINDS: Final = {str: "string", int: "number", list: "list", dict: "table"}


class HookSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The commands that run when something happens to a grant."""

    file: Path
    """The configuration file that names them."""
    commands: dict[str, tuple[str, ...]]
    """By the keys of ``HOOKS``: a program, as an absolute path or a name to look up on PATH, and its arguments."""
    timeout: float
    """Seconds for one run of a command."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a command."""

    directories: Directories
    state_given: bool
    """Whether the state directory was named: it is an error then if it does not exist."""
    ca_file: str | None
    listen: Address | None
    """The address of the health endpoint; ``None`` without one."""
    listen_hosts: tuple[str, ...] = ()
    """The names that a request to it may give as its host, in lower case."""
    metrics_file: Path | None = None
    """Where ``run-once`` writes its metrics; ``None``: nowhere."""
    page_token_file: str | None = None
    """Holds the token that the page, its stream and its history ask for."""
    gateway: str | None = None
    """The address of the gateway, which ``run`` starts; ``None``: it starts none."""
    gateway_keys_file: Path
    """Holds the keys of the gateway."""
    log_format: LogFormat
    verbose: int
    hooks: HookSettings | None = None
    outputs: "tuple[Output, ...]" = ()
    history_days: int
    """The age of the oldest events in the history; 0: there is no history."""
    history_mb: int
    """The most that the history takes, in megabytes; 0: there is no history."""

    store: str | None = None
    """The URL of the database that holds the grants; ``None``: they are files in the state directory."""
    mirror: tuple[str, ...] = ("*",)
    """Patterns of the names whose tokens this host needs, if the grants are in a database."""

    def open_store(self) -> "Store":
        """Return the store of the grants. Raises ``ConfigError``."""
        return FileStore(self.directories) if self.store is None else self.open_database()

    def open_database(self) -> "PostgresStore":
        """Return the store in a database. Raises ``ConfigError``."""
        try:
            from refresher.storage.postgres.postgres_store import PostgresStore
        except ImportError:
            raise ConfigError("a store in PostgreSQL needs psycopg: pip install 'refresher[postgres]'") from None
        if self.store is None:
            raise ConfigError("give the database of the grants: --store postgresql://USER@HOST/DATABASE")
        return PostgresStore(self.store, self.directories, self.mirror)


def resolve(given: Mapping[str, Any], config: str | None) -> Settings:
    """Return the settings of a command.

    ``given``: the options and the environment, by the keys of the file; ``None`` is not given. ``config``: the file,
    which must exist if it is named. Raises ``ConfigError``.
    """
    if config == "":
        raise _empty("--config")
    values = _read(config) | {key: value for key, value in given.items() if value is not None}
    for key in _PATHS:
        if values.get(key) == "":  # usually an unset variable of a script, and not a wish for the default
            raise _empty(f"--{key.replace('_', '-')}")
    state = Path(values.get("state_dir") or default_state_dir())
    if str(state).startswith("~"):
        raise ConfigError("there is no home directory: give --state-dir, or set HOME")
    if (log_format := values.get("log_format", "text")) not in ("text", "json"):
        raise ConfigError("log_format must be 'text' or 'json'")
    gateway_keys = _absolute("gateway_keys_file", values.get("gateway_keys_file") or state / "gateway-keys.json")
    _check_paths(values.get("outputs", ()), {**values, "gateway_keys_file": gateway_keys})
    return Settings(
        directories=Directories(
            state=_absolute("state_dir", state),
            tokens=_absolute("tokens_dir", values.get("tokens_dir") or state / "tokens"),
            demands=_absolute("demands_dir", values.get("demands_dir") or state / "demands"),
            # Not /tmp, which is often in memory: a spilled token must survive a reboot.
            spill=_absolute("spill_dir", values.get("spill_dir") or f"/var/tmp/refresher-{os.geteuid()}"),  # noqa: S108
            group=_group(values.get("tokens_group")),
            keys=_key_ring(values),
        ),
        state_given=bool(values.get("state_dir")),
        ca_file=values.get("ca_file"),
        listen=parse_address(values["listen"]) if values.get("listen") else None,
        listen_hosts=tuple(map(host_name, values.get("listen_hosts") or ())),
        metrics_file=_metrics_file(file) if (file := values.get("metrics_file")) else None,
        page_token_file=values.get("page_token_file") or None,
        gateway=values.get("gateway") or None,
        gateway_keys_file=gateway_keys,
        log_format="json" if log_format == "json" else "text",
        verbose=max(values.get("verbose") or 0, 0),
        store=parse_store(values.get("store")),
        mirror=_mirror(values.get("mirror")),
        hooks=values.get("hooks"),
        outputs=values.get("outputs", ()),
        history_days=_bound("history_days", values),
        history_mb=_bound("history_mb", values),
    )


def parse_store(given: str | None) -> str | None:
    """Return the URL of a database; ``None`` without one. Raises ``ConfigError``."""
    if given and not given.startswith(("postgresql://", "postgres://")):
        raise ConfigError("store must be the URL of a database: postgresql://USER@HOST/DATABASE")
    return given or None


def _key_ring(values: Mapping[str, Any]) -> KeyRing:
    current, previous, published, previous_published = (
        each if isinstance(each := values.get(key), Source) else parse_source(key, each) for key in _KEY_SOURCES
    )
    own = KeyRing(published, previous_published) if published or previous_published else None
    return KeyRing(current, previous, own)


def _mirror(given: Any) -> tuple[str, ...]:
    if given is None:
        return ("*",)
    patterns = [given] if isinstance(given, str) else given
    if not patterns or not all(isinstance(each, str) and each for each in patterns):
        raise ConfigError('mirror must be a list of names or patterns, such as ["team-*"]')
    return tuple(patterns)


def _bound(key: str, values: Mapping[str, Any]) -> int:
    default, least, greatest = _HISTORY[key]
    value = os.environ.get(f"REFRESHER_{key.upper()}") or values.get(key, default)
    try:
        number = int(value)
    except ValueError:
        number = -1
    if number and not least <= number <= greatest:
        raise ConfigError(f"{key} must be a number from {least} to {greatest}, or 0 for no history")
    return number


def _read(config: str | None) -> dict[str, Any]:
    path = Path(config) if config else _default_config()
    try:
        data = read_named(path, _LARGEST_FILE).data
    except FileNotFoundError:
        if config:
            raise ConfigError(f"there is no configuration file {path}: create it, or omit --config") from None
        return {}
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from None
    import tomllib  # most machines have no file: a cron run does not pay for this

    try:
        # Some editors begin a file with a byte order mark.
        values: dict[str, Any] = tomllib.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        form = "UTF-8 text" if isinstance(error, UnicodeDecodeError) else f"TOML: {error}"
        raise ConfigError(f"{path}: it is not {form}") from None
    for key, value in values.items():
        if (kind := _KEYS.get(key)) is None:
            raise ConfigError(f"{path}: unknown key {key!r} (known: {', '.join(_KEYS)})")
        if type(value) not in kind:
            raise ConfigError(f"{path}: {key} must be a {' or '.join(_KINDS[each] for each in kind)}")
        if key in _PATHS:
            if not value:
                raise _empty(f"{path}: {key}")
            try:
                values[key] = str(path.parent / Path(value).expanduser())  # relative to the file
            except (RuntimeError, ValueError):
                raise ConfigError(f"{path}: {key} is not a path: there is no home directory for its '~'") from None
        if key in _KEY_SOURCES:
            values[key] = parse_source(f"{path}: {key}", value, path.parent)
        if key == "hooks":
            values[key] = _hooks(path.absolute(), value)
        if key == "outputs":
            values[key] = _outputs(path.absolute(), value)
    return values


def _empty(what: str) -> ConfigError:
    return ConfigError(f"{what} is empty: give a path, or leave it out for the default")


def _hooks(path: Path, table: Mapping[str, Any]) -> HookSettings | None:
    commands, timeout = {}, _HOOK_TIMEOUT
    for key, value in table.items():
        if key == "timeout":
            try:
                timeout = durations.parse(value)
            except (TypeError, ValueError):
                timeout = 0.0
            if not 1 <= timeout <= _LONGEST_HOOK:
                raise ConfigError(f"{path}: timeout in [hooks] must be a duration from 1s to 1h, for example '30s'")
        elif key in HOOKS:
            commands[key] = _command(path, key, value)
        else:
            raise ConfigError(f"{path}: unknown key {key!r} in [hooks] (known: {', '.join(HOOKS)}, timeout)")
    return HookSettings(file=path, commands=commands, timeout=timeout) if commands else None


def _outputs(path: Path, tables: list[Any]) -> "tuple[Output, ...]":
    from refresher.grants import outputs  # most configurations have none

    found: dict[str, Output] = {}
    namespaces: dict[tuple[str, str], set[str | None]] = {}
    for number, table in enumerate(tables, 1):
        begin = f"{path}: number {number} of [[outputs]]"
        if not isinstance(table, dict):
            raise ConfigError(f"{begin} must be a table")
        try:
            output = outputs.parse(table, path.parent)
        except ValueError as error:
            raise ConfigError(f"{begin}: {error}") from None
        if output.target in found:
            raise ConfigError(f"{begin}: another output writes {output.target} too: give each a place of its own")
        if isinstance(output, outputs.SecretOutput):
            others = namespaces.setdefault((output.secret, output.key), set())
            if others and None in {*others, output.namespace}:
                raise ConfigError(f"{begin}: another output may write {output.target} too: give both a namespace")
            others.add(output.namespace)
        found[output.target] = output
    return tuple(found.values())


def _check_paths(outputs: "tuple[Output, ...]", values: Mapping[str, Any]) -> None:
    """Refuse an output in the place of another file of the configuration."""
    if outputs:
        named = {os.path.normpath(_absolute(key, values[key])): key for key in _PATHS if values.get(key)}
        for output in outputs:
            if (key := named.get(output.target)) is not None:
                raise ConfigError(f"an output writes {output.target}, which is the {key}: give it a path of its own")


def _command(path: Path, key: str, value: object) -> tuple[str, ...]:
    """Return the program and the arguments of the hook ``key``; a program is relative to the file ``path``."""
    import shlex

    try:
        words = shlex.split(value) if isinstance(value, str) else value
    except ValueError:
        raise ConfigError(f"{path}: {key} in [hooks] has a quote that does not end") from None
    if not isinstance(words, list) or not all(isinstance(word, str) and "\0" not in word for word in words):
        words = []
    if not words or not words[0]:
        raise ConfigError(f"{path}: {key} in [hooks] must be a program and its arguments, as a list or as one text")
    try:
        words = [str(Path(word).expanduser()) if word.startswith("~/") else word for word in words]
    except RuntimeError:
        raise ConfigError(f"{path}: {key} in [hooks]: there is no home directory for its '~'") from None
    # As in a shell, a name without a slash is looked up on PATH.
    program = str(path.parent / words[0]) if "/" in words[0] else words[0]
    return (program, *words[1:])


def _absolute(key: str, path: str | Path) -> Path:
    if "\0" in str(path):
        raise ConfigError(f"{key} is not a path")
    try:
        return Path(path).absolute()
    except OSError as error:
        raise ConfigError(f"{key} is relative to a directory that does not exist: {error.strerror}") from None


def _metrics_file(given: str) -> Path:
    path = _absolute("metrics_file", given)
    if not path.name.endswith(".prom"):
        raise ConfigError(f"the name of the metrics file {path} must end with .prom: node_exporter reads no other file")
    return path


def _default_config() -> Path:
    # The XDG base directory specification: ignore a relative path.
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
            raise ConfigError(f"there is no group {group!r}: create it with groupadd, or give its number") from None
    # The largest number means "unchanged" to chown(2).
    if len(str(group)) > _LONGEST_NUMBER or not 0 <= int(group) < 2**32 - 1:
        raise ConfigError("tokens_group must be the name or number of a group")
    return int(group)
