"""Each parser of a file returns what was written, or raises its own error, for any damage to the file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refresher.common.errors import GrantFileError, ImportRefused
from refresher.common.secret import Secret
from refresher.grants.encoding import decode, encode
from refresher.grants.record import NO_RECORD, Stored, Tombstone
from refresher.operations import import_request
from refresher.storage.journal import Attempt, Mark, read_intent
from shim import FileTokenSource
from shim._token import STATES, TokenFile, is_name, parse, render
from shim.errors import TokenFileError
from tests.support.fake_state import directories
from tests.support.published import DEAD, token
from tests.support.samples import NOON, at, doubt, failure, grant

GRANT = grant(client_secret=Secret("the-client-secret"), doubt=doubt(), failure=failure(), spent=("0" * 32,))
TOMBSTONE = Tombstone(
    name="linear", grant_id="0123", generation=3, begun_from="", removed_at=NOON, scope=None, origins=("https://a",)
)
TOKEN = token(7, error=DEAD, scope="read", issued_at=NOON, expires_at=NOON + 3600)
IMPORT = {
    "token_endpoint": "https://as.example/token",
    "client_id": "client",
    "refresh_token": "a-refresh-token",
    "server_url": "https://mcp.example/mcp",
    "expires_in": 3600,
    "access_token": "an-access-token",
}

# Values that random damage would almost never produce.
EXTREME = [
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-0",
    b"1.0",
    b"9" * 400,
    b"9" * 5000,
    b"[" * 50_000,
    b'{"a":' * 10_000,
    b"[" * 20_000 + b"]" * 20_000,
    b"\0",
    bytes(70_000),
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b'"\\ud800"',
    b"\n",
    b"null",
    b"true",
    b'""',
    b"{}",
    b',"version":2',
    b'"version":1,"version":1,',
    b'"generation":4,',
    b'"checksum":"",',
    b'"kind":"tombstone",',
]


def mutants(whole: bytes) -> st.SearchStrategy[bytes]:
    """Return ``whole`` with the damage that a disk, a crash or an editor can cause, and unrelated bytes."""
    place = st.integers(0, len(whole))
    commas = [index + 1 for index, byte in enumerate(whole) if byte in b"{,:"]
    extreme = st.sampled_from(EXTREME) | st.binary(max_size=8)

    def flipped(places: list[tuple[int, int]]) -> bytes:
        data = bytearray(whole)
        for index, bit in places:
            data[index] ^= 1 << bit
        return bytes(data)

    def spliced(start: int, length: int, new: bytes) -> bytes:
        return whole[:start] + new + whole[start + length :]

    return st.one_of(
        st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 7)), min_size=1, max_size=3).map(flipped),
        place.map(lambda end: whole[:end]),
        place.map(lambda end: whole[:end] + bytes(4096)),
        st.builds(spliced, place, st.integers(0, 40), extreme),
        st.builds(spliced, st.sampled_from(commas), st.integers(0, 3), extreme),
        st.sampled_from([whole * 2, whole.decode().encode("utf-16"), b"\xef\xbb\xbf" + whole]),
        st.binary(),
        extreme,
    )


@pytest.mark.parametrize("record", [GRANT, TOMBSTONE], ids=["grant", "tombstone"])
def test_a_record_is_read_unchanged_or_refused(record: Tombstone) -> None:
    """If it failed, a damaged record would be used, or would stop the rotation of all other grants."""
    whole, checksum = encode(record)

    @given(mutants(whole))
    def check(data: bytes) -> None:
        try:
            stored = decode(data, "linear")
        except GrantFileError:
            return
        assert stored == Stored(record, checksum), "a change went unnoticed"

    check()


@pytest.mark.parametrize("mark", [Mark.UNSENT, Mark.SENT])
def test_an_intent_is_read_unchanged_or_refused(tmp_path: Path, mark: Mark) -> None:
    """If it failed, a damaged intent would hide that a request may have been sent, or name another file as the spill."""
    made = directories(tmp_path)
    attempt = Attempt(made, "linear", Stored(None, NO_RECORD))
    attempt.reserve(GRANT, at())
    attempt._mark(mark)
    attempt.close()
    path = made.intent("linear")
    whole = path.read_bytes()
    written = read_intent(path)
    assert written is not None

    @given(mutants(whole))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        try:
            found = read_intent(path)
        except ValueError:
            return
        assert (found is None) == (not data.strip(b"\0")), "a damaged intent was read as none"
        # The mark is one byte that is changed in place: the checksum does not cover it.
        assert found is None or found[0] == written[0], "a change went unnoticed"

    check()


def test_a_token_file_is_read_by_its_contract_or_refused(tmp_path: Path) -> None:
    """If it failed, a damaged token file would end an agent with a traceback, or put invalid bytes into a header."""
    path = tmp_path / "linear.json"
    path.write_bytes(render(TOKEN))
    source = FileTokenSource("linear", tokens_dir=tmp_path, demands_dir=tmp_path)
    assert source.current() == TOKEN

    @given(mutants(render(TOKEN)))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        before = source.current()
        try:
            read = parse(data)
        except TokenFileError:
            assert before is not None, "the last good token is forgotten"
            return
        _check_contract(read)
        assert parse(render(read)) == read
        if read.name == "linear" and len(data) <= 1024 * 1024:
            assert before == read

    check()


def _check_contract(read: TokenFile) -> None:
    assert is_name(read.name)
    assert read.state in STATES
    assert read.generation >= 0
    assert read.origins
    assert abs(read.issued_at) < float("inf")
    assert read.expires_at is None or abs(read.expires_at) < float("inf")
    assert read.access_token is None or (read.access_token.isascii() and read.access_token.isprintable())


def test_an_import_is_a_grant_or_refused() -> None:
    """If it failed, a damaged file would end an import with a traceback that quotes it."""

    @given(mutants(json.dumps(IMPORT).encode()))
    def check(data: bytes) -> None:
        try:
            read = import_request.parse("linear", data, at())
        except ImportRefused as refused:
            assert "a-refresh-token" not in str(refused)  # noqa: PT017  only a refusal has a message
            return
        data, _ = encode(read)
        assert decode(data, "linear").record == read

    check()


@pytest.mark.parametrize(
    "read",
    [lambda data: decode(data, "linear"), parse, lambda data: import_request.parse("linear", data, at())],
    ids=["record", "token file", "import"],
)
@pytest.mark.parametrize("extreme", EXTREME, ids=range(len(EXTREME)))
def test_an_extreme_value_is_refused_by_each_parser(read: Callable[[bytes], object], extreme: bytes) -> None:
    """If it failed, deeply nested brackets in one file would stop the rotation of all grants."""
    for data in (
        extreme,
        b'{"version":1,"checksum":"","record":%b}' % extreme,
        b'{"version":%b,"new":%b}' % (extreme, extreme),
    ):
        with pytest.raises((GrantFileError, TokenFileError, ImportRefused)):
            read(data)
