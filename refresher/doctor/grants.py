"""The grants: records, states, refresh tokens, key files, and what ends soon."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final

from refresher.common import clocks, text
from refresher.common.errors import ConfigError, GrantFileError
from refresher.common.reading import read_ahead, read_named
from refresher.doctor.finding import Code, Finding, found, from_message
from refresher.grants import policy, refresh_life
from refresher.grants.forecast import ENDS_SOON
from refresher.grants.record import Grant, Moved
from refresher.grants.token_file import rejection_of, state_of
from refresher.oauth import tls
from refresher.operations import certificates
from refresher.operations.encryption import Seal
from refresher.operations.inspection import ListedGrant
from refresher.operations.result import create_commands, is_denied, new_client_command, repair_command
from refresher.storage.directories import Directories

__all__ = ["check", "check_files", "check_moves", "check_refresh_tokens", "check_seals"]

_AT_ONCE: Final = 32


def check(directories: Directories, entries: Sequence[ListedGrant]) -> Iterator[Finding]:
    """Check the record of each grant, its state, and when its login and its client end."""
    for name, grant in entries:
        if isinstance(grant, GrantFileError):
            yield _unusable(directories, name, str(grant))
        else:
            yield from _state(grant)
            yield from _ends(grant)


def check_moves(moved: Sequence[Moved]) -> Iterator[Finding]:
    """Find grants whose move to this store is not complete."""
    for each in moved:
        if each.arriving is not None:
            what = f"{each.name} is on its way from {each.place}, and inactive until the move is complete"
            yield found("move_unfinished", what, name=each.name)


def check_seals(seals: Iterable[Seal]) -> Iterator[Finding]:
    """Find grants that are sealed with a key that is not here, and those that are not as the configuration says."""
    unknown: dict[str, list[str]] = {}
    differs: list[str] = []
    for seal in seals:
        for key_id in {each.key_id for each, form in seal.holdings if form == "unknown"}:
            unknown.setdefault(str(key_id), []).append(seal.name)
        for each, form in seal.holdings:
            if form == "damaged" and each.what not in (f"{seal.name}.json", "record"):  # ``check`` reports a record
                mend = f"restore it from a copy; without one, 'refresher login {seal.name}'"
                yield found("invalid_grant_file", f"{each.what}: {each.problem}", mend, name=seal.name)
        if not seal.as_configured and not any(form in ("unknown", "damaged") for _, form in seal.holdings):
            differs.append(seal.name)
    for key_id, names in unknown.items():
        yield found("key_unavailable", f"{text.names(names)}: sealed with the key {key_id}, which is not here")
    if differs:
        mend = "refresher encryption status, then enable, rekey or disable"
        yield found("seal_differs", f"{text.names(differs)}: not in the form that is configured", mend)


def check_refresh_tokens(entries: Sequence[ListedGrant], asked: str | None = None) -> Iterator[Finding]:
    """Find refresh tokens that are stored under two names, or that another name has spent.

    ``asked``: only those of this name. Of two holders, the second is reported, unless the first is asked for.
    """
    grants = [grant for _, grant in entries if isinstance(grant, Grant) and grant.refresh_token is not None]
    holders: dict[str, str] = {}
    tokens = {grant.name: grant.refresh_token.fingerprint() for grant in grants if grant.refresh_token is not None}
    for name, token in tokens.items():
        if (first := holders.setdefault(token, name)) != name and asked in (None, first, name):
            about, twin = (first, name) if asked == first else (name, first)
            yield found(
                "shared_refresh_token", f"{twin} has the same refresh token", f"refresher remove {name}", name=about
            )
    for other in grants:
        for spent in other.spent:
            if (name := holders.get(spent, other.name)) != other.name and asked in (None, name):
                yield found(
                    "shared_refresh_token",
                    f"{other.name} has already sent its refresh token to the server",
                    f"refresher login {name}",
                    name=name,
                )


def check_files(grants: Sequence[Grant], ca_file: str | None) -> Iterator[Finding]:
    """Check that the keys and certificates of ``grants`` can be read and used, and when the certificates end."""
    users: dict[tuple[str, ...], list[Grant]] = {}
    for grant in grants:
        if files := tls.named_files(grant, ca_file):
            users.setdefault((grant.token_endpoint.partition(":")[0], *files), []).append(grant)
    groups, seen = list(users.values()), set[str]()
    for start in range(0, len(groups), _AT_ONCE):
        some = groups[start : start + _AT_ONCE]
        # All at once: each could be on a file system that does not answer.
        with read_ahead({path for group in some for path in tls.named_files(group[0], ca_file)}):
            for group in some:
                yield from _files_of(group, ca_file, seen)


def _files_of(group: Sequence[Grant], ca_file: str | None, seen: set[str]) -> Iterator[Finding]:
    """Check the files of grants that all name the same ones. ``seen``: the problems and files that are reported."""
    first, name = group[0], group[0].name if len(group) == 1 else None
    for problem in _problems(first, ca_file):
        if problem not in seen:
            seen.add(problem)
            yield found("file_unreadable", f"{text.names([grant.name for grant in group])}: {problem}", name=name)
    for path in tls.named_files(first, ca_file):
        if path not in seen:
            seen.add(path)
            yield from _certificate(path, is_client=path == first.client_cert, name=name)


def _unusable(directories: Directories, name: str, message: str) -> Finding:
    message, restore, _ = message.partition(". Restore it, or log in again")
    if restore:
        mend = f"restore it from a backup, or 'refresher login {name} URL'"
        return found("invalid_grant_file", message, mend, name=name)
    return from_message("invalid_grant_file", message, (directories.record(name),), name=name)


def _state(grant: Grant) -> Iterator[Finding]:
    name, mend = grant.name, repair_command(grant)
    if is_denied(grant):
        mend = f"ask those who run the identity provider, then '{mend}'"
    why = "" if grant.failure is None else grant.failure.description
    state = state_of(grant)
    if state == "reauthorization_required":
        yield found(
            "reauthorization_required", why or "the server does not accept this login any more", mend, name=name
        )
    elif grant.doubt is not None:
        yield found("in_doubt", why or "the answer to its last request was lost", f"{mend}, or wait", name=name)
    elif (rejection := rejection_of(grant)) is not None:
        yield found("token_rejected", rejection.description, mend, name=name)
    elif state == "failing":
        yield found("failing", why, _mend_of_failure(grant), name=name)
    if not grant.renewable and state != "reauthorization_required":
        left = policy.expected_expiry(grant) - clocks.now().wall
        ends = f"in {text.span(left)}" if left > 0 else f"{text.span(left)} ago"
        yield found(
            "no_refresh_token", f"the server issued no refresh token; the access token ends {ends}", mend, name=name
        )


def _mend_of_failure(grant: Grant) -> str:
    code = "" if grant.failure is None else grant.failure.code
    if grant.failure is None or grant.assertion is None or code not in ("source_missing", "source_cycle"):
        return f"refresher run-once --force {grant.name}"
    if code == "source_cycle":
        return f"refresher import {grant.name} --replace --from FILE"
    for source in grant.assertion.sources:
        if grant.failure.description.startswith(f"its source {source} does not exist"):
            return create_commands(source)
    return "mend its source first"


def _ends(grant: Grant) -> Iterator[Finding]:
    if grant.dead:
        return
    now, mend = clocks.now(), repair_command(grant)
    left = refresh_life.login_left(grant, now)
    if left is None and (rest := refresh_life.remaining(grant, now)) is not None and rest <= 0:
        left = rest  # nobody has used the refresh token in time
    yield from _ending("login_ends", "login_ended", "the login", left, mend, grant.name)
    if grant.login is not None and grant.login.client_expires_at is not None:
        left = grant.login.client_expires_at - now.wall
        subject = f"the registration of the client {grant.client_id}"
        yield from _ending("client_ends", "client_ended", subject, left, new_client_command(grant), grant.name)


def _ending(
    ends: Code, ended: Code, subject: str, left: float | None, mend: str, name: str | None
) -> Iterator[Finding]:
    if left is None or left > ENDS_SOON:
        return
    if left <= 0:
        yield found(ended, f"{subject} ended {text.span(left)} ago", mend, name=name)
    else:
        at = text.clock_time(clocks.now().wall + left)
        yield found(ends, f"{subject} ends in {text.span(left)}, at {at}", mend, name=name)


def _problems(grant: Grant, ca_file: str | None) -> Iterator[str]:
    """Return why the files of ``grant`` cannot be used, as a request would find out."""
    from refresher.oauth.client_authentication import client_assertion, token_in

    checks: list[Callable[[], object]] = []
    if grant.token_endpoint.startswith("https:"):
        checks.append(lambda: tls.ssl_context(ca_file, client_cert=grant.client_cert, client_key=grant.client_key))
    now = clocks.now().wall
    if grant.private_key_file is not None or grant.client_assertion_file is not None:
        checks.append(lambda: client_assertion(grant, now))
    checks += [
        partial(token_in, each.file, "assertion", now, is_jwt=each.is_jwt)
        for each in (() if grant.assertion is None else grant.assertion.tokens)
        if each.file is not None
    ]
    for use in checks:
        try:
            use()
        except ConfigError as error:
            yield str(error)


def _certificate(path: str, *, is_client: bool, name: str | None) -> Iterator[Finding]:
    end = certificates.end_in(path) if is_client else _end_of_bundle(path)
    if end is not None:
        mend = f"put a new certificate into {path}"
        left = end - clocks.now().wall
        yield from _ending("certificate_ends", "certificate_ended", f"the certificate in {path}", left, mend, name)


def _end_of_bundle(path: str) -> float | None:
    """Return when the last certificate in a file ends: a bundle of authorities is of use until then."""
    from cryptography import x509

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old authorities in the bundle of a system
            found_there = x509.load_pem_x509_certificates(read_named(path).data)
    except (OSError, ValueError):
        return None  # a key, or a file that is reported as one that cannot be used
    return max(each.not_valid_after_utc.timestamp() for each in found_there)
