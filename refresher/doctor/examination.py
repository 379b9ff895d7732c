"""The whole examination: what is checked, in which order."""

import os
from collections.abc import Callable, Iterable
from typing import Final

from refresher.common import text
from refresher.config import Settings
from refresher.doctor import configuration, environment, grants, places, service
from refresher.doctor.finding import GRAVITIES, Finding, Part, found
from refresher.grants.record import Grant, Moved
from refresher.operations.encryption import seals
from refresher.operations.inspection import ListedGrant, list_grants, server_of
from refresher.storage import last_run
from refresher.storage.keys import KeyRing

__all__ = ["examine", "findings_of"]

_NOT_CHECKED: Final = "not checked: the directories come first"
_SAMPLED: Final = ("record_contradicts",)
_NO_DATABASE: Final = "not checked: the database comes first"


def examine(
    settings: Settings, name: str | None, *, offline: bool, step: Callable[[list[str]], None] = lambda _: None
) -> list[Part]:
    """Check everything, or the directories, the service and the grant ``name``.

    ``offline``: connect to no server. ``step`` is called with what is being checked. Raises ``UnknownName``.
    """
    directories = settings.directories
    step(["the directories"])
    listing, problems = places.check(directories)
    if settings.store is None and settings.state_given and not os.path.lexists(directories.state):
        problems.append(found("directory_missing", f"there is no state directory {directories.state}"))
    if listing is not None and settings.history_days and settings.history_mb and directories.state.exists():
        problems += places.check_history(directories)
    parts = [Part("directories", str(directories.state), problems)]
    moved: list[Moved] = []
    entries: list[ListedGrant] = []
    selected: list[ListedGrant] = []
    usable, reason = listing, _NOT_CHECKED
    if settings.store is not None:
        from refresher.doctor import database

        step([settings.open_store().place])
        about, readable = database.check(settings)
        # A sample has them; below, each record is read.
        parts += [
            part._replace(findings=[each for each in part.findings if each.code not in _SAMPLED]) for part in about
        ]
        if not readable:
            usable, reason = None, _NO_DATABASE
        elif listing is not None:
            usable = settings.open_store().listing()
    if usable is not None:
        step(["the grants"])
        selected = entries = list_grants(store := settings.open_store(), moved=moved)
        if name is not None:
            selected = list_grants(store, (name,))
    chosen = [grant for _, grant in selected if isinstance(grant, Grant)]
    if usable is not None:
        served = service.is_served(directories)
        who = (
            "'refresher run' is running"
            if served
            else "any host with this database"
            if settings.store is not None
            else "nothing to refresh yet"
            if not chosen
            else "refreshed by 'run-once'"
            if last_run.at(directories) is not None
            else "nobody has refreshed yet"
        )
        parts.append(
            Part(
                "service",
                who,
                [*service.check(directories, chosen, usable, served=served, shared=settings.store is not None)],
            )
        )
        shared = grants.check_refresh_tokens(entries, name)
        files = grants.check_files(chosen, settings.ca_file)
        count = f"{len(selected)} grant{'' if len(selected) == 1 else 's'}"
        if moved:
            count += f", {len(moved)} moved"
        arriving = grants.check_moves([each for each in moved if name in (None, each.name)])
        sealed = grants.check_seals(seals(store, () if name is None else (name,)))
        parts.append(Part("grants", count, [*grants.check(directories, selected), *arriving, *shared, *files, *sealed]))
        parts.append(_servers(chosen, settings.ca_file, offline, step))
    else:
        parts += [Part(title, reason, []) for title in ("service", "grants", "servers")]
    named = [
        *(settings.hooks.commands if settings.hooks else ()),
        *(["page token"] if settings.page_token_file else []),
        *(["encryption key"] if directories.keys != KeyRing() else []),
        *([f"{len(settings.outputs)} output{'' if len(settings.outputs) == 1 else 's'}"] if settings.outputs else []),
    ]
    parts.append(
        Part(
            "configuration",
            ", ".join(named) or "no hooks, no page token in the configuration",
            [*configuration.check(settings, offline=offline)],
        )
    )
    parts.append(Part("package shim", "that of refresher", [*environment.check()]))
    return parts


def findings_of(parts: Iterable[Part]) -> list[Finding]:
    """Return all findings, the most serious first."""
    findings = [finding for part in parts for finding in part.findings]
    return sorted(findings, key=lambda finding: -GRAVITIES[finding.gravity])


def _servers(chosen: list[Grant], ca_file: str | None, offline: bool, step: Callable[[list[str]], None]) -> Part:
    if offline:
        return Part("servers", "not checked (--offline)", [])
    if not chosen:
        return Part("servers", "none to check", [])
    try:
        from refresher.doctor import servers
    except ModuleNotFoundError as error:
        missing = found("servers_not_checked", f"the servers were not checked: {error.name} is not installed")
        return Part("servers", "not checked", [missing])
    findings = servers.check(chosen, ca_file, waiting=step)
    return Part("servers", text.names(sorted({server_of(grant) for grant in chosen})), findings)
