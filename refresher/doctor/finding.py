"""A finding: what is wrong, why it matters, and the command that mends it. The codes are a closed set."""

import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from refresher.common.text import one_line

__all__ = [
    "GRAVITIES",
    "KINDS",
    "Code",
    "Finding",
    "Gravity",
    "Kind",
    "Part",
    "exit_code",
    "found",
    "from_message",
]

Gravity = Literal["attention", "broken", "person"]

GRAVITIES: Final[dict[Gravity, int]] = {"attention": 1, "broken": 2, "person": 3}
"""The exit code of each gravity, as that of ``status --exit-code``."""

Code = Literal[
    "directory_missing",
    "directory_refused",
    "demands_refused",
    "directory_risk",
    "group_shut_out",
    "no_locks",
    "read_only",
    "no_space",
    "little_space",
    "single_file_mount",
    "history_unusable",
    "not_running",
    "not_responding",
    "demand_unanswered",
    "demand_unknown",
    "invalid_grant_file",
    "shared_refresh_token",
    "reauthorization_required",
    "no_refresh_token",
    "failing",
    "in_doubt",
    "token_rejected",
    "login_ends",
    "login_ended",
    "client_ends",
    "client_ended",
    "certificate_ends",
    "certificate_ended",
    "file_unreadable",
    "server_away",
    "metadata_unusable",
    "issuer_changed",
    "endpoint_changed",
    "proxy_answers",
    "clock_differs",
    "servers_not_checked",
    "hook_unusable",
    "page_token_unusable",
    "key_unavailable",
    "seal_differs",
    "output_unusable",
    "output_unknown",
    "foreign_shim",
    "database_away",
    "database_schema",
    "database_rights",
    "database_unsafe",
    "database_log",
    "database_asynchronous",
    "database_read_only",
    "database_tls",
    "database_clock",
    "database_pooler",
    "orphaned_token",
    "spilled_token",
    "record_contradicts",
    "move_unfinished",
]


class Kind(NamedTuple):
    """What all findings of one code have in common."""

    gravity: Gravity
    why: str
    mend: str = ""
    """The command or the advice, if the finding itself has none."""


KINDS: Final[dict[Code, Kind]] = {
    # the directories
    "directory_missing": Kind(
        "broken",
        "refresher looks for its grants there",
        "correct --state-dir, or create it with 'refresher login NAME URL'",
    ),
    "directory_refused": Kind(
        "broken",
        "refresher stops before it uses a directory that others could read or change: it rotates nothing",
        "give refresher directories of its own: see 'refresher --help'",
    ),
    "demands_refused": Kind(
        "broken",
        "agents cannot demand a new token when a server refuses theirs",
        "give another directory with --demands-dir",
    ),
    "directory_risk": Kind("attention", "a token could be read, replaced or lost without a sign of it"),
    "group_shut_out": Kind("broken", "agents of the group cannot reach the tokens that are published for them"),
    "no_locks": Kind(
        "broken",
        "without locks, two processes could send one refresh token: refresher rotates nothing",
        "put --state-dir on a file system that has flock",
    ),
    "read_only": Kind(
        "broken",
        "a new token could not be saved or published, so refresher rotates nothing",
        "mount it writable, or give another directory",
    ),
    "no_space": Kind("broken", "refresher reserves space before each rotation; without it, it rotates nothing"),
    "little_space": Kind("attention", "refresher reserves space before each rotation; without it, it rotates nothing"),
    "single_file_mount": Kind(
        "broken", "refresher replaces a file by a rename, and a file that is a mount of its own cannot be replaced"
    ),
    "history_unusable": Kind(
        "attention",
        "what happens to the grants is not kept, or cannot be shown",
        "give this user access, or set history_days = 0",
    ),
    # who refreshes
    "not_running": Kind(
        "attention",
        "access tokens expire, and agents then have none",
        "refresher run",
    ),
    "not_responding": Kind(
        "broken",
        "access tokens expire, and agents then have none",
        "restart 'refresher run', for example with 'systemctl restart refresher'",
    ),
    "demand_unanswered": Kind("attention", "an agent waits: a server refuses the token that it has", "refresher run"),
    "demand_unknown": Kind("attention", "an agent waits for a token that nobody fetches"),
    # the grants
    "invalid_grant_file": Kind(
        "broken",
        "refresher does not rotate a grant whose file it cannot read, or that others may have changed",
        "give the file to the user of refresher with 'chown', or run refresher as its owner",
    ),
    "shared_refresh_token": Kind(
        "broken", "most servers accept a refresh token once, and end the login when it is sent again"
    ),
    "reauthorization_required": Kind("person", "no retry helps: agents have no token as soon as the last one expires"),
    "no_refresh_token": Kind("attention", "the login lasts only as long as its access token"),
    "failing": Kind("attention", "refresher retries by itself; if that never succeeds, the access token expires"),
    "in_doubt": Kind("attention", "the refresh token may be spent: refresher waits before it sends it again"),
    "token_rejected": Kind("attention", "new tokens do not help: agents get no answer from that server"),
    "login_ends": Kind("attention", "no rotation prolongs it; only a person can begin another login"),
    "login_ended": Kind("person", "the server accepts no refresh token of this login any more"),
    "client_ends": Kind("attention", "the server then rejects each rotation; a login registers a new client"),
    "client_ended": Kind("person", "the server rejects each rotation; a login registers a new client"),
    "certificate_ends": Kind("attention", "no connection with an expired certificate succeeds"),
    "certificate_ended": Kind("broken", "no connection with an expired certificate succeeds"),
    "file_unreadable": Kind(
        "broken",
        "without it, refresher sends nothing for the grants that need it",
        "correct the file or its permissions, or give another one",
    ),
    # the servers
    "server_away": Kind(
        "attention", "no grant of this server can be rotated meanwhile", "check the network, and run this again later"
    ),
    "metadata_unusable": Kind(
        "attention",
        "rotation goes on with the stored endpoints, but the next login could fail",
        "ask the operator of the server; for a login, give --issuer or the endpoints",
    ),
    "issuer_changed": Kind(
        "broken",
        "another server may answer in its place: log in there only if you know why it changed",
        "ask the operator of the server, then log in again",
    ),
    "endpoint_changed": Kind(
        "attention", "refresher sends a refresh token only to the stored endpoint, which the server may close"
    ),
    "proxy_answers": Kind(
        "broken",
        "requests do not reach the server, so no grant of it can be rotated",
        "let the proxy pass connections to the server, or name the server in NO_PROXY",
    ),
    "clock_differs": Kind(
        "attention",
        "refresher allows for it, but agents read when a token expires by this clock",
        "timedatectl set-ntp true",
    ),
    "servers_not_checked": Kind(
        "attention", "nobody knows whether the servers still name the same endpoints", "pip install '.[all]'"
    ),
    # the configuration
    "hook_unusable": Kind(
        "broken", "this command does not run when something happens to a grant", "correct it in the configuration"
    ),
    "page_token_unusable": Kind(
        "broken",
        "the page shows nothing until it can be used",
        "put the output of 'openssl rand -hex 32' into it, with mode 600",
    ),
    "key_unavailable": Kind(
        "broken",
        "grants that are sealed with it are not rotated, and nothing can be sealed with it",
        "let this user read the key, or log in again if it is lost: 'refresher encryption status' shows the grants",
    ),
    "seal_differs": Kind(
        "attention",
        "copies of these files show the tokens, or need a key that is to be replaced",
        "refresher encryption status",
    ),
    "output_unusable": Kind("broken", "programs that read this output have no token, or an old one"),
    "output_unknown": Kind(
        "attention",
        "this output stays empty",
        "correct the grant of the output, or create it with 'refresher login NAME URL'",
    ),
    # this environment
    "foreign_shim": Kind(
        "broken",
        "agents of this environment import another package in place of the one that reads the tokens",
        "pip uninstall shim, then install refresher again",
    ),
    # the database that holds the grants
    "database_away": Kind(
        "broken",
        "refresher rotates nothing without its database; agents keep the tokens that they have",
        "check its address and its server, and run this again",
    ),
    "database_schema": Kind("broken", "refresher rotates nothing before the schema fits", "refresher store init"),
    "database_rights": Kind("broken", "without these rights, refresher cannot save a new token"),
    "database_unsafe": Kind(
        "broken", "after a crash of its machine, the database can have lost a new refresh token, or be damaged"
    ),
    "database_log": Kind("broken", "who reads the log of the database reads refresh tokens"),
    "database_asynchronous": Kind(
        "attention",
        "if this server is lost, the last new refresh tokens are lost with it, and these grants need a person",
        "set synchronous_standby_names, with two standbys so that one can be away",
    ),
    "database_read_only": Kind(
        "broken",
        "refresher cannot arm an exchange there, so it rotates nothing",
        "point the store to the primary: target_session_attrs=read-write finds it among several hosts",
    ),
    "database_tls": Kind(
        "attention",
        "refresh tokens cross the network to the database",
        "add ?sslmode=verify-full&sslrootcert=FILE to the address of the store",
    ),
    "database_clock": Kind(
        "broken", "a lease counts by both clocks, so nothing is rotated here", "timedatectl set-ntp true"
    ),
    "database_pooler": Kind(
        "attention",
        "behind it, refresher looks for changes twice a second and is not woken by them, and others do not see that it "
        "is alive",
        "give the mirrors the address of the database itself",
    ),
    "orphaned_token": Kind("attention", "it may be the only copy of a refresh token"),
    "spilled_token": Kind("attention", "it is the only copy of a new refresh token, and only this host has it"),
    "record_contradicts": Kind("broken", "refresher does not rotate a grant whose record it cannot trust"),
    "move_unfinished": Kind(
        "broken",
        "nobody rotates this grant here, and perhaps nobody elsewhere",
        "repeat the 'refresher store move' that was interrupted",
    ),
}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong; its fields are the keys of ``doctor --json``."""

    code: Code
    gravity: Gravity
    name: str | None
    """The grant, if there is one."""
    what: str
    why: str
    mend: str


class Part(NamedTuple):
    """One part of an examination."""

    title: str
    line: str
    """What was checked."""
    findings: list[Finding]


def found(code: Code, what: str, mend: str = "", *, name: str | None = None) -> Finding:
    """Return a finding; without ``mend``, with the advice of its code."""
    kind = KINDS[code]
    # What servers and paths contain must not control a terminal.
    return Finding(
        code=code,
        gravity=kind.gravity,
        name=name,
        what=one_line(what),
        why=kind.why,
        mend=one_line(mend or kind.mend),
    )


def from_message(code: Code, message: str, paths: Iterable[Path] = (), *, name: str | None = None) -> Finding:
    """Return the finding of an error message or a warning of refresher, which ends with what to do.

    ``paths``: those that the message may be about, so that its command names the right one.
    """
    what, _, mend = message.rpartition(": ")
    if not what or message.startswith("cannot "):
        return found(code, message, name=name)  # what follows is why, as the system says it
    if "' on it" in mend:
        about = max((path for path in paths if str(path) in what), key=lambda path: len(str(path)), default=None)
        if about is not None:
            mend = mend.replace("' on it", f" {shlex.quote(str(about))}'")
    only = re.fullmatch(r"run '(.+)'", mend)
    return found(code, what, only[1] if only else mend, name=name)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return the exit code of the most serious finding; 0 without one."""
    return max((GRAVITIES[finding.gravity] for finding in findings), default=0)
