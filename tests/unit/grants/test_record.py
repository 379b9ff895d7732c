"""The private record's bytes prove that they are whole."""

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refresher.common.errors import GrantFileError
from refresher.common.secret import Secret
from refresher.grants.record import SPENT_KEPT, Tombstone, decode, encode, spend
from tests.support.samples import NOON, doubt, failure, grant

FULL = grant(
    client_secret=Secret("the-client-secret"),
    doubt=doubt(),
    failure=failure(),
    spent=("0" * 32,),
    resource="https://mcp.example/mcp",
)
TOMBSTONE = Tombstone(
    name="linear", grant_id="0123", generation=3, begun_from="", removed_at=NOON, scope=None, origins=("https://a",)
)


@pytest.mark.parametrize("record", [FULL, grant(), TOMBSTONE], ids=["full", "healthy", "tombstone"])
def test_a_record_comes_back_as_it_was(record: Tombstone) -> None:
    """If it failed, a rotation would lose a part of the grant."""
    data, checksum = encode(record)
    assert decode(data, "linear").record == record
    assert decode(data, "linear").checksum == checksum


def test_a_record_of_an_old_release_is_read() -> None:
    """If it failed, an upgrade would cost every login."""
    raw = msgspec.json.encode(grant(refresh_token=None, access_token=None)).replace(b'"issued":null,', b"", 1)
    data = b'{"version":1,"checksum":"%s","record":%s}\n' % (hashlib.sha256(raw).hexdigest().encode(), raw)
    assert b'"issued":' not in data
    assert decode(data, "linear").record == grant(refresh_token=None, access_token=None)


@given(st.integers(0, len(encode(FULL)[0]) - 2), st.integers(1, 255))
def test_a_changed_byte_is_noticed(position: int, change: int) -> None:
    """If it failed, a damaged refresh token would be sent, and a server would take it for an attack."""
    data = bytearray(encode(FULL)[0])
    data[position] ^= change
    try:
        decoded = decode(bytes(data), "linear")
    except GrantFileError:
        return
    assert decoded.record == FULL, "a change went unnoticed"


@given(st.integers(0, len(encode(FULL)[0]) - 2), st.booleans())
def test_a_torn_record_is_noticed(length: int, padded: bool) -> None:
    """If it failed, half a record would be adopted after a crash."""
    data = encode(FULL)[0][:length]
    with pytest.raises(GrantFileError):
        decode(data + bytes(65536) if padded else data, "linear")


@given(st.binary())
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    """If it failed, one broken grant file would keep the others from their rotation."""
    with pytest.raises(GrantFileError):
        decode(data, "linear")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (bytes(100), "empty"),
        (b'{"version": 2, "new": []}', "version 2"),
        (b"not JSON", "not a grant record"),
        (encode(grant(name="notion"))[0], "notion"),
    ],
)
def test_a_person_learns_what_is_wrong_with_a_record(data: bytes, words: str) -> None:
    """If it failed, nobody could tell a newer version's record from a torn one."""
    with pytest.raises(GrantFileError, match=words):
        decode(data, "linear")


def test_only_the_last_spent_tokens_are_remembered_and_none_twice() -> None:
    """If it failed, records would grow for ever, or forget what was spent yesterday."""
    spent: tuple[str, ...] = ()
    for number in range(SPENT_KEPT + 10):
        spent = spend(spent, Secret(f"token-{number}"))
    spent = spend(spent, Secret("token-200"))
    assert len(spent) == SPENT_KEPT
    assert spent[-1] == Secret("token-200").fingerprint()
    assert len(set(spent)) == SPENT_KEPT
    assert Secret("token-0").fingerprint() not in spent


def test_the_largest_record_fits_into_the_space_that_is_reserved() -> None:
    """If it failed, a record could outgrow its reservation, and a full disk would lose a token after the spend."""
    full = msgspec.structs.replace(FULL, spent=tuple("f" * 32 for _ in range(SPENT_KEPT)))
    assert len(encode(full)[0]) < 64 * 1024
