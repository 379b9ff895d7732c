"""The published token, as it is at this moment: one ``stat`` a look, one read a change."""

import os
import time
from collections.abc import Callable
from stat import S_ISREG

from shim._changes import Changes, verdict
from shim._origins import origin_of_url
from shim._paths import demands_dir as default_demands_dir
from shim._paths import tokens_dir as default_tokens_dir
from shim._token import TokenFile, is_name, parse
from shim.errors import ShimError, TokenFileError, TokenRejected, TokenUnavailable

__all__ = ["FileTokenSource", "is_last", "valid_for"]

_LARGEST = 1024 * 1024
_LOOK_AGAIN = 0.05

_Stamp = tuple[int, int, int]
_stat = os.stat


class FileTokenSource:
    """The token that a refresher publishes under ``name``.

    One instance serves threads, event loops, sync and async callers alike: it holds no lock, and its state is a tuple
    that is replaced whole. A file that cannot be read leaves the last good token in place; ``problem()`` says why.

    ``tokens_dir`` and ``demands_dir`` default to ``REFRESHER_TOKENS_DIR`` and ``REFRESHER_DEMANDS_DIR``, else to
    ``tokens`` and ``demands`` in refresher's state directory. Raises ``ValueError`` where ``name`` is no name.
    """

    __slots__ = ("_demands", "_path", "_rejected", "_seen", "name")

    def __init__(
        self,
        name: str,
        *,
        tokens_dir: "str | os.PathLike[str] | None" = None,
        demands_dir: "str | os.PathLike[str] | None" = None,
    ) -> None:
        if not is_name(name):
            raise ValueError(f"{name!r} is no name: lower-case letters, digits, '.', '_' and '-', 64 at most")
        self.name = name
        self._path = f"{_directory(tokens_dir, default_tokens_dir)}/{name}.json"
        self._demands = _directory(demands_dir, default_demands_dir)
        # What was read, by which stamp, and what was wrong with it. The stamp of nothing equals no other.
        self._seen: tuple[_Stamp | None, TokenFile | None, ShimError | None] = (None, None, None)
        # Which token was refused last, of which generation, by whom, and since when (monotonic seconds).
        self._rejected: tuple[str, int, str, float] | None = None

    def __repr__(self) -> str:
        """Name the source, without its token."""
        return f"FileTokenSource({self.name!r}, {self._path!r})"

    def current(self) -> TokenFile | None:
        """Return what the token file says now, or said when it could last be read; ``None`` if it never could.

        Never raises. Follows symbolic links, and opens the file anew by its path, as Kubernetes needs it.
        """
        seen = self._seen
        try:
            status = _stat(self._path)
        except OSError as error:
            return self._unreadable(f"cannot read {self._path}: {error.strerror}; does a refresher publish there?")
        # Different, not newer: clocks are set back, and a restored file is older.
        if (status.st_mtime_ns, status.st_ino, status.st_size) == seen[0]:
            return seen[1]
        return self._read(status)

    def token(self, *, min_valid: float = 0.0, wait: float = 0.0) -> str:
        """Return an access token with at least ``min_valid`` seconds to live, for a program that builds its own header.

        A token of unknown lifetime counts as valid. Where less is left, a rotation is demanded, and awaited for up to
        ``wait`` seconds; that blocks, so an async program that waits does so in a thread. Raises what ``problem()``
        tells: ``ReauthorizationRequired`` and ``Removed`` at once, anything else after the wait; ``ValueError`` where
        ``wait`` is no number.

        Mind where you send it: ``headers()`` knows the origins it is for, this does not.
        """
        if not wait >= 0:
            raise ValueError("wait must be seconds, 0 or more")
        ends = time.monotonic() + wait
        while True:
            token = self.current()
            if token is not None and token.access_token is not None and valid_for(token) >= min_valid:
                return token.access_token
            if token is not None:
                if (final := verdict(token)) is not None:
                    raise final
                if not is_last(token):
                    self.demand(token)
            remaining = ends - time.monotonic()
            if remaining <= 0:
                raise self.problem() or TokenUnavailable(
                    f"the token of {self.name} has less than {min_valid:g} s to live, and no newer one came within "
                    f"{wait:g} s; does a refresher run?"
                )
            time.sleep(min(_LOOK_AGAIN, remaining))

    def headers(self, url: str) -> dict[str, str]:
        """Return ``{"Authorization": ...}`` for a request to ``url``; ``{}`` where the token must not be sent to it.

        Also ``{}`` for an address in which programs may find different hosts: with a backslash, spaces, a user name,
        or letters outside ASCII (write an international name in its ``xn--`` form).
        """
        origin = origin_of_url(url)
        authorization = None if origin is None else self.authorization(self.current(), origin)
        return {} if authorization is None else {"Authorization": authorization}

    @staticmethod
    def authorization(token: TokenFile | None, origin: str) -> str | None:
        """Return the header's value for a request to ``origin``; ``None`` where there is none to send."""
        if token is None or token.access_token is None or origin not in token.origins:
            return None
        # RFC 6750 spells it with a capital; servers answer "bearer", and some take only what the RFC says.
        scheme = "Bearer" if token.token_type.lower() == "bearer" else token.token_type
        return f"{scheme} {token.access_token}"

    def problem(self) -> ShimError | None:
        """Return what is wrong, the gravest first, ``None`` where nothing is known to be.

        A token may be good all the same: of a dead grant while it lives, or the last good one while its file cannot
        be read. Demands nothing.
        """
        token = self.current()
        if token is not None and (final := verdict(token)) is not None:
            return final
        unreadable = self._seen[2]
        if unreadable is not None:
            return unreadable
        if token is None:
            return TokenFileError(f"there is nothing at {self._path} yet")
        noted = self._rejected
        if noted is not None and noted[0] == token.access_token:
            return TokenRejected(
                f"{noted[2]} refuses the newest token of {self.name} (generation {token.generation}); if the next one "
                "is refused too, look at that server"
            )
        if token.access_token is None or valid_for(token) <= 0:
            words = token.error.description if token.error is not None else "does a refresher run?"
            what = "there is no token yet" if token.access_token is None else "the token has expired"
            return TokenUnavailable(f"{self.name}: {what}: {words}")
        return None

    def demand(self, token: TokenFile) -> bool:
        """Ask the refresher to rotate beyond ``token``; any number of demands for one generation are one.

        Returns whether the demand stands. Never raises: without a demands directory the schedule still rotates.
        """
        path = f"{self._demands}/{self.name}.{token.generation}"
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return True
        except OSError:
            return False
        return True

    def rejected(self, token: TokenFile, origin: str) -> float:
        """Note that ``origin`` refused ``token``; return since when (monotonic seconds) it is refused.

        The time belongs to the token: its requests wait together, not one after the other.
        """
        now = time.monotonic()
        noted = self._rejected
        if noted is not None and noted[0] == token.access_token:
            return noted[3]
        # A latecomer with an older token does not overwrite what is known of the newer one.
        if noted is None or noted[1] <= token.generation:
            self._rejected = (token.access_token or "", token.generation, origin, now)
        return now

    def accepted(self, token: TokenFile) -> None:
        """Note that a server took ``token``: an earlier refusal was not about the token."""
        if self._rejected is not None and self._rejected[0] == token.access_token:
            self._rejected = None

    def changes(self, *, poll: float = 1.0) -> Changes:
        """Return the events of this token from now on, for ``for`` and ``async for``; looks each ``poll`` seconds."""
        return Changes(self.current, poll)

    def _unreadable(self, words: str) -> TokenFile | None:
        return self._unusable(TokenFileError(words))

    def _unusable(self, problem: TokenFileError) -> TokenFile | None:
        # No stamp: whatever comes next is looked at.
        last = self._seen[1]
        self._seen = (None, last, problem)
        return last

    def _read(self, status: os.stat_result) -> TokenFile | None:
        if not S_ISREG(status.st_mode):
            return self._unreadable(f"{self._path} is not a file")
        try:
            with open(self._path, "rb") as file:  # noqa: PTH123  pathlib would double the cost of importing shim
                # The stamp of what is read, not of what was there a moment ago.
                status = os.fstat(file.fileno())
                data = file.read(_LARGEST + 1)
        except OSError as error:
            return self._unreadable(f"cannot read {self._path}: {error.strerror}")
        if len(data) > _LARGEST:
            return self._unreadable(f"{self._path} is too large for a token file")
        try:
            token = parse(data)
        except TokenFileError as error:
            return self._unusable(type(error)(f"{self._path}: {error}"))
        if token.name != self.name:
            return self._unreadable(f"{self._path} is the token file of {token.name}")
        self._seen = ((status.st_mtime_ns, status.st_ino, status.st_size), token, None)
        return token


def _directory(given: "str | os.PathLike[str] | None", default: Callable[[], str]) -> str:
    directory: object = default() if given is None else os.fspath(given)
    if not isinstance(directory, str) or not directory or "\0" in directory:
        raise ValueError("a directory must be a path, as text")
    return directory


def is_last(token: TokenFile) -> bool:
    """Whether a token may be the last one: it lives, and its refresh token may be spent.

    A demand says that a token is of no use; the refresher would risk what is left of this one to get another.
    """
    return token.error is not None and token.error.code == "in_doubt" and valid_for(token) > 0


def valid_for(token: TokenFile) -> float:
    """Return the seconds that a token has to live; infinite where nobody has told."""
    return float("inf") if token.expires_at is None else token.expires_at - time.time()
