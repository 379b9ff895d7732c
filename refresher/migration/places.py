"""Where other programs keep their logins on this machine, and reads what is there. It writes and locks nothing."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from refresher.common.errors import ConfigError
from refresher.common.reading import list_named, read_named
from refresher.migration.formats import FORMATS, Format, recognised
from refresher.migration.kept_login import Damaged, KeptLogin, Source, Unreadable, json_of

__all__ = ["Found", "logins_at", "logins_here", "places"]

Found = KeptLogin | Damaged

_LARGEST: Final = 1024 * 1024
_MOST_FILES: Final = 1_000
"""Of one directory: of the rest, it is said that it was not read, so that a wrong directory takes no time."""

_FILES: Final = (".credentials.json", "mcp-auth.json", "mcp-oauth-tokens.json", "mcp-tokens")
"""What a directory of a program that keeps all logins in one place has, besides others."""


def places(environment: Mapping[str, str]) -> dict[str, Path]:
    """Return the file or directory of each program; FastMCP and the MCP SDK have no place of their own."""

    def directory(variable: str, *default: str) -> Path:
        # The programs treat an empty variable as none.
        return Path(environment.get(variable) or Path(environment.get("HOME") or "~").expanduser().joinpath(*default))

    return {
        "claude-code": directory("CLAUDE_CONFIG_DIR", ".claude") / ".credentials.json",
        "mcp-remote": directory("MCP_REMOTE_CONFIG_DIR", ".mcp-auth"),
        "opencode": directory("XDG_DATA_HOME", ".local", "share") / "opencode/mcp-auth.json",
        "hermes": directory("HERMES_HOME", ".hermes") / "mcp-tokens",
        "codex": directory("CODEX_HOME", ".codex") / ".credentials.json",
        "gemini-cli": directory("GEMINI_CLI_HOME") / ".gemini/mcp-oauth-tokens.json",
    }


def logins_here(environment: Mapping[str, str], key: str | None) -> list[Found]:
    """Return the logins of the program ``key``, else of all programs, where they keep them on this machine.

    Raises ``ConfigError`` for a program without a place.
    """
    known = places(environment)
    if key is not None and key not in known:
        raise ConfigError(f"{FORMATS[key].title} has no place of its own: give its file or directory with --file")
    found: list[Found] = []
    for program, place in known.items():
        if key in (None, program):
            found += _at(FORMATS[program], place, missing_is_empty=True)
    return found


def logins_at(path: Path, key: str | None) -> list[Found]:
    """Return the logins in a file or directory that a person named, of the program ``key`` or of what it looks like.

    Raises ``ConfigError`` if it cannot be read or is not recognised.
    """
    try:
        names = list_named(path)
    except FileNotFoundError:
        raise ConfigError(f"cannot read {path}: there is no such file or directory") from None
    except NotADirectoryError:
        if key is not None:
            return _at(FORMATS[key], path, missing_is_empty=False)
        try:
            document = json_of(read_named(path, _LARGEST).data)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except Unreadable as error:
            raise ConfigError(f"{path}: {error}") from None
        if (found := recognised(path, document)) is None:
            raise ConfigError(
                f"{path} is not a file that refresher recognises: name the program with --format"
            ) from None
        return _at(found, path, missing_is_empty=False)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    for name in _FILES:
        if name in names:
            return logins_at(path / name, key)
    if key is not None:
        return _at(FORMATS[key], path, missing_is_empty=False)
    for form in FORMATS.values():
        if form.folder is not None and any(map(form.folder, names)):
            return _at(form, path, missing_is_empty=False)
    if path.name == "mcp-tokens":
        return _at(FORMATS["hermes"], path, missing_is_empty=False)
    if any(map(FORMATS["mcp-remote"].is_file, names)):
        return _at(FORMATS["mcp-remote"], path, missing_is_empty=False)
    raise ConfigError(f"{path} is not a directory that refresher recognises: name the program with --format")


def _at(form: Format, path: Path, *, missing_is_empty: bool) -> list[Found]:
    """Return the logins in a file of the program, or in all its files in a directory."""
    try:
        names = [name for name in sorted(list_named(path)) if form.is_file(name) or _is_folder(form, name)]
    except NotADirectoryError:
        return list(_in_file(form, path))
    except FileNotFoundError:
        if missing_is_empty:
            return []
        raise ConfigError(f"cannot read {path}: there is no such file or directory") from None
    except OSError as error:
        return [Damaged(program=form.key, file=path, problem=f"cannot be read: {error.strerror}")]
    found: list[Found] = []
    for name in names[:_MOST_FILES]:
        if not _is_folder(form, name):
            found += _in_file(form, path / name)
            continue
        try:
            inside = [file for file in sorted(list_named(path / name)) if form.is_file(file)]
        except NotADirectoryError:
            continue
        except OSError as error:
            found.append(Damaged(program=form.key, file=path / name, problem=f"cannot be read: {error.strerror}"))
            continue
        found += [each for file in inside[:_MOST_FILES] for each in _in_file(form, path / name / file)]
        found += _not_read(form, path / name, inside)
    return [*found, *_not_read(form, path, names)]


def _is_folder(form: Format, name: str) -> bool:
    return form.folder is not None and form.folder(name)


def _not_read(form: Format, path: Path, names: Sequence[str]) -> Iterator[Damaged]:
    """Say that a directory has more files than are read."""
    if (more := len(names) - _MOST_FILES) > 0:
        problem = f"has {more} more files, which were not read: name one of them with --file"
        yield Damaged(program=form.key, file=path, problem=problem)


def _in_file(form: Format, path: Path) -> Iterator[Found]:
    try:
        data, status = read_named(path, _LARGEST)
        source = Source(path=path, document=json_of(data), modified=status.st_mtime, read=_beside, names=_names)
        yield from form.logins(source)
    except OSError as error:
        yield Damaged(program=form.key, file=path, problem=f"cannot be read: {error.strerror}")
    except Unreadable as error:
        yield Damaged(program=form.key, file=path, problem=str(error))


def _beside(path: Path) -> Any:
    try:
        return json_of(read_named(path, _LARGEST).data)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from None
    except Unreadable as error:
        raise Unreadable(f"{path}: {error}") from None


def _names(path: Path) -> list[str]:
    try:
        return sorted(list_named(path))[:_MOST_FILES]
    except OSError:
        return []
