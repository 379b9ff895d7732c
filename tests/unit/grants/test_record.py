"""The encoding of the private record: what is read back, and what is detected as damaged."""

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refresher.common.errors import GrantFileError
from refresher.common.secret import Secret
from refresher.grants.encoding import decode, encode
from refresher.grants.record import MAX_SPENT, Tombstone, with_spent
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
def test_a_record_is_read_back_unchanged(record: Tombstone) -> None:
    """If it failed, a rotation would lose part of the grant."""
    data, checksum = encode(record)
    assert decode(data, "linear").record == record
    assert decode(data, "linear").checksum == checksum


def test_a_record_of_an_old_release_is_read() -> None:
    """If it failed, every grant would need a new login after an upgrade."""
    raw = msgspec.json.encode(grant(refresh_token=None, access_token=None)).replace(b'"issued":null,', b"", 1)
    data = b'{"version":1,"checksum":"%s","record":%s}\n' % (hashlib.sha256(raw).hexdigest().encode(), raw)
    assert b'"issued":' not in data
    assert decode(data, "linear").record == grant(refresh_token=None, access_token=None)


@given(st.integers(0, len(encode(FULL)[0]) - 2), st.integers(1, 255))
def test_a_changed_byte_is_detected(position: int, change: int) -> None:
    """If it failed, refresher would send a damaged refresh token, and the server could revoke the grant."""
    data = bytearray(encode(FULL)[0])
    data[position] ^= change
    try:
        decoded = decode(bytes(data), "linear")
    except GrantFileError:
        return
    assert decoded.record == FULL, "a change went unnoticed"


@given(st.integers(0, len(encode(FULL)[0]) - 2), st.booleans())
def test_a_truncated_record_is_detected(length: int, padded: bool) -> None:
    """If it failed, recovery after a crash would adopt half a record."""
    data = encode(FULL)[0][:length]
    with pytest.raises(GrantFileError):
        decode(data + bytes(65536) if padded else data, "linear")


@given(st.binary())
def test_invalid_data_raises_only_grant_file_error(data: bytes) -> None:
    """If it failed, one damaged grant file would stop the rotation of all grants."""
    with pytest.raises(GrantFileError):
        decode(data, "linear")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (bytes(100), "empty"),
        (b'{"version": 99, "new": []}', "version 99"),
        (b"not JSON", "not a grant record"),
        (encode(grant(name="notion"))[0], "notion"),
    ],
)
def test_the_error_says_what_is_wrong_with_a_record(data: bytes, words: str) -> None:
    """If it failed, a record of a newer version would look like a damaged one."""
    with pytest.raises(GrantFileError, match=words):
        decode(data, "linear")


def test_the_latest_used_tokens_are_remembered_once_each() -> None:
    """If it failed, records would grow without limit, or forget recently used refresh tokens."""
    spent: tuple[str, ...] = ()
    for number in range(MAX_SPENT + 10):
        spent = with_spent(spent, Secret(f"token-{number}"))
    spent = with_spent(spent, Secret("token-200"))
    assert len(spent) == MAX_SPENT
    assert spent[-1] == Secret("token-200").fingerprint()
    assert len(set(spent)) == MAX_SPENT
    assert Secret("token-0").fingerprint() not in spent


def test_the_largest_record_fits_into_the_reserved_space() -> None:
    """If it failed, a full disk could lose a new refresh token, because the record needs more than the reserved space."""
    full = msgspec.structs.replace(FULL, spent=tuple("f" * 32 for _ in range(MAX_SPENT)))
    assert len(encode(full)[0]) < 64 * 1024
