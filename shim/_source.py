"""The token source: the published token at this moment, for one ``stat`` per call and one read per change."""

import os
import time
from stat import S_ISREG
from typing import TYPE_CHECKING

from shim._changes import Changes, permanent_error
from shim._origins import origin_of_url
from shim._token import TokenFile, is_name, parse
from shim.errors import InsufficientScope, ShimError, TokenFileError, TokenRejected, TokenUnavailable

if TYPE_CHECKING:
    from shim._challenge import Refusal  # takes a millisecond, and a program without BearerAuth does not need it

__all__ = ["EXPIRING", "FileTokenSource", "default_state_dir", "may_be_last", "valid_for"]

EXPIRING = "expiring"
"""In a demand: no server has refused the token, it expires too soon for its reader."""

_MAX_SIZE = 1024 * 1024
_POLL_INTERVAL = 0.05
_ASK = "is refresher running?"

_Stamp = tuple[int, int, int]
_stat = os.stat


class FileTokenSource:
    """The token that refresher publishes under ``name``.

    One instance serves all threads and event loops, sync and async: it has no lock, and replaces its state as a whole.
    If the file cannot be read, the last token that could be read stays in use, and ``problem()`` says why.

    ``tokens_dir`` and ``demands_dir`` default to ``REFRESHER_TOKENS_DIR`` and ``REFRESHER_DEMANDS_DIR``, else to
    ``tokens`` and ``demands`` in refresher's state directory. Raises ``ValueError`` if ``name`` is not a valid name.
    """

    __slots__ = ("_cached", "_demands", "_lacking", "_path", "_rejected", "_warned", "name")

    def __init__(
        self,
        name: str,
        *,
        tokens_dir: "str | os.PathLike[str] | None" = None,
        demands_dir: "str | os.PathLike[str] | None" = None,
    ) -> None:
        if not is_name(name):
            raise ValueError(
                f"{name!r} is not a valid name: use up to 64 lower-case letters, digits, '.', '_' and '-'; "
                "the first is a letter or a digit"
            )
        self.name = name
        self._path = f"{_directory(tokens_dir, 'tokens')}/{name}.json"
        self._demands = _directory(demands_dir, "demands")
        # The stamp of the file that was read last, its token, and its problem. None equals no stamp.
        self._cached: tuple[_Stamp | None, TokenFile | None, ShimError | None] = (None, None, None)
        # The token that was rejected last, its generation, the origin, and when it was first rejected (monotonic).
        self._rejected: tuple[str, int, str, float] | None = None
        # The token that lacked a scope last, and the refusal of the origin.
        self._lacking: tuple[str | None, str, Refusal] | None = None
        self._warned = False

    def __repr__(self) -> str:
        """Leave out the token."""
        return f"FileTokenSource({self.name!r}, {self._path!r})"

    def current(self) -> TokenFile | None:
        """Return the content of the token file, or the last content that could be read; ``None`` if there is none.

        Never raises. Follows symbolic links and opens the file by its path each time, as Kubernetes mounts require.
        """
        cached = self._cached
        try:
            status = _stat(self._path)
        except OSError as error:
            return self._unusable(f"cannot read {self._path}: {error.strerror}; does refresher publish there?")
        # Any difference counts, not only a later time: clocks are set back, and a restored file is older.
        if (status.st_mtime_ns, status.st_ino, status.st_size) == cached[0]:
            return cached[1]
        return self._read(status)

    def token(self, *, min_valid: float = 0.0, wait: float = 0.0) -> str:
        """Return an access token that is valid for at least ``min_valid`` seconds.

        A token of unknown lifetime counts as valid. If the token expires sooner, this demands a rotation and waits for
        it, up to ``wait`` seconds. The wait blocks: an async program calls this in a thread. Raises the error that
        ``problem()`` returns: ``ReauthorizationRequired`` and ``Removed`` at once, others after the wait.

        The caller must check where it sends the token. ``headers()`` checks the origin, this method does not.
        """
        if not wait >= 0:
            raise ValueError("wait must be a number of seconds, 0 or more")
        ends = time.monotonic() + wait
        while True:
            token = self.current()
            if token is not None and token.access_token is not None and valid_for(token) >= min_valid:
                return token.access_token
            if token is not None:
                if (error := permanent_error(token)) is not None:
                    raise error
                if not may_be_last(token):
                    self.demand(token, expiring=True)
            remaining = ends - time.monotonic()
            if remaining <= 0:
                problem = self.problem()
                if problem is not None and not isinstance(problem, InsufficientScope):
                    raise problem
                raise TokenUnavailable(
                    f"the token of {self.name} is valid for less than {min_valid:g} s, and no newer one came in "
                    f"time; {_ASK}"
                )
            time.sleep(min(_POLL_INTERVAL, remaining))

    def headers(self, url: str) -> dict[str, str]:
        """Return ``{"Authorization": ...}`` for a request to ``url``, or ``{}`` if the token must not be sent there.

        Also returns ``{}`` for a URL in which two parsers may find different hosts: one with a backslash, a space, a
        user name, or a character outside ASCII (write an international host name in its ``xn--`` form).
        """
        origin, token = origin_of_url(url), self.current()
        if origin is None:
            return {}
        self.prepare(token, origin)
        authorization = self.authorization(token, origin)
        return {} if authorization is None else {"Authorization": authorization}

    @staticmethod
    def authorization(token: TokenFile | None, origin: str) -> str | None:
        """Return the value of the header for a request to ``origin``; ``None`` if no token may be sent there."""
        if token is None or token.access_token is None or origin not in token.origins:
            return None
        # Servers issue "bearer", and some of them accept only the spelling of RFC 6750.
        scheme = "Bearer" if token.token_type.lower() == "bearer" else token.token_type
        return f"{scheme} {token.access_token}"

    def problem(self) -> ShimError | None:
        """Return the most serious problem, or ``None``. Demands nothing.

        The token may still be valid: the grant has ended but the token has not expired, or the file cannot be read at
        the moment.
        """
        token = self.current()
        file_problem = self._cached[2]
        if token is not None and (error := permanent_error(token)) is not None:
            return error
        if file_problem is not None:
            return file_problem
        if token is None:
            return TokenFileError(f"{self._path} does not exist yet; does refresher publish there?")
        rejected = self._rejected
        if rejected is not None and rejected[0] == token.access_token:
            return TokenRejected(
                f"{rejected[2]} rejects the newest token of {self.name} (generation {token.generation}); if it rejects "
                "the next one too, check that server"
            )
        if token.access_token is None or valid_for(token) <= 0:
            what = "there is no token yet" if token.access_token is None else "the token has expired"
            why = _ASK if token.error is None else token.error.description
            return TokenUnavailable(f"{self.name}: {what}: {why}")
        lacking = self._lacking
        if lacking is not None and lacking[0] == token.access_token:
            return lacking[2].as_error(self.name, lacking[1])
        return None

    def prepare(self, token: TokenFile | None, origin: str) -> None:
        """Before a request to ``origin``: demand a newer token if ``token`` has expired; without a token, warn once."""
        if token is None or token.access_token is None:
            if not self._warned:
                self._warned = True
                import logging  # "import shim" does not load it

                logging.getLogger("shim").warning("%s: requests carry no token: %s", self.name, self.problem())
        elif origin in token.origins and valid_for(token) <= 0 and permanent_error(token) is None:
            self.demand(token, expiring=True)

    def demand(self, token: TokenFile, *, expiring: bool = False) -> bool:
        """Ask refresher for a newer token than ``token``. Repeated demands for one generation count as one.

        If a server rejected that token, the file holds its origin, so that refresher can name it. ``expiring``: if none
        did, the token only expires too soon, and the file says so. Returns whether the demand file exists. Never
        raises: refresher also rotates on schedule, without demands.
        """
        path = f"{self._demands}/{self.name}.{token.generation}"
        rejected = self._rejected
        content = (EXPIRING if expiring else "").encode()
        if rejected is not None and rejected[0] == token.access_token:
            content = rejected[2].encode()
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return True
        except OSError:
            return False
        try:
            if content:
                # refresher may be another user, of the group of the directory; the umask does not count.
                os.fchmod(descriptor, 0o640)
                os.write(descriptor, content)
        except OSError:
            pass  # an empty demand counts too
        finally:
            os.close(descriptor)
        return True

    def rejected(self, token: TokenFile, origin: str) -> float:
        """Record that ``origin`` rejected ``token``; return when it was first rejected (monotonic seconds).

        All requests of the token wait from that moment, together and not one after the other.
        """
        now = time.monotonic()
        rejected = self._rejected
        if rejected is not None and rejected[0] == token.access_token:
            return rejected[3]
        # A slow request with an older token must not replace what is known about a newer one.
        if rejected is None or rejected[1] <= token.generation:
            self._rejected = (token.access_token or "", token.generation, origin, now)
        return now

    def accepted(self, token: TokenFile) -> None:
        """Record that a server accepted ``token``: an earlier rejection had another cause."""
        if self._rejected is not None and self._rejected[0] == token.access_token:
            self._rejected = None

    def lacks_scope(self, token: TokenFile, origin: str, refusal: "Refusal") -> None:
        """Record that ``origin`` requires a scope that ``token`` lacks."""
        self._lacking = (token.access_token, origin, refusal)

    def changes(self, *, poll: float = 1.0) -> Changes:
        """Return the events of this token from now on, for ``for`` and ``async for``; polls every ``poll`` seconds."""
        return Changes(self.current, poll)

    def _unusable(self, problem: TokenFileError | str) -> TokenFile | None:
        # Without a stamp, the next call reads the file again.
        last = self._cached[1]
        self._cached = (None, last, TokenFileError(problem) if isinstance(problem, str) else problem)
        return last

    def _read(self, status: os.stat_result) -> TokenFile | None:
        try:
            if S_ISREG(status.st_mode):
                # The file may have been replaced since the stat, also by a FIFO, which would block without the flag.
                with open(self._path, "rb", opener=_open) as file:
                    status = os.fstat(file.fileno())
                    data = file.read(_MAX_SIZE + 1) if S_ISREG(status.st_mode) else b""
        except OSError as error:
            return self._unusable(f"cannot read {self._path}: {error.strerror}")
        if not S_ISREG(status.st_mode):
            return self._unusable(f"{self._path} is not a regular file")
        if len(data) > _MAX_SIZE:
            return self._unusable(f"{self._path} is too large for a token file")
        try:
            token = parse(data)
        except TokenFileError as error:
            return self._unusable(type(error)(f"{self._path}: {error}"))
        if token.name != self.name:
            return self._unusable(f"{self._path} is the token file of {token.name}")
        self._cached = ((status.st_mtime_ns, status.st_ino, status.st_size), token, None)
        return token


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def default_state_dir() -> str:
    """Return ``$XDG_STATE_HOME/refresher``, else ``~/.local/state/refresher``; without a home, ``~`` stays as it is."""
    base = os.environ.get("XDG_STATE_HOME", "")
    # The XDG specification says to ignore a relative path. pathlib would double the time that "import shim" takes.
    return os.path.join(base if os.path.isabs(base) else os.path.expanduser("~/.local/state"), "refresher")  # noqa: PTH111, PTH117, PTH118


def _directory(given: "str | os.PathLike[str] | None", name: str) -> str:
    """Return the directory ``given``, else that of the environment, else ``name`` in the state directory."""
    if given is None:
        state = os.environ.get("REFRESHER_STATE_DIR") or default_state_dir()
        given = os.environ.get(f"REFRESHER_{name.upper()}_DIR") or os.path.join(state, name)  # noqa: PTH118
    directory: object = os.fspath(given)
    if not isinstance(directory, str) or not directory or "\0" in directory:
        raise ValueError("tokens_dir and demands_dir must be directories, as str or PathLike")
    return directory


def may_be_last(token: TokenFile) -> bool:
    """Whether ``token`` is valid, and may be the last one because its refresh token may be spent.

    A demand would make refresher send a refresh token that may be spent, which can revoke this valid token. So the
    caller does not demand.
    """
    return token.error is not None and token.error.code == "in_doubt" and valid_for(token) > 0


def valid_for(token: TokenFile) -> float:
    """Return for how many seconds ``token`` is still valid; infinity if its lifetime is unknown."""
    return float("inf") if token.expires_at is None else token.expires_at - time.time()
