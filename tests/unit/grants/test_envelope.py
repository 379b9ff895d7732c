"""Sealed records: what is read back, what is in the clear, and that no bit of an envelope can be changed."""

import base64
import hashlib
import json
import os

import msgspec
import pytest

from refresher.common.errors import GrantFileError, KeyUnavailable
from refresher.common.secret import Secret
from refresher.grants import policy
from refresher.grants.encoding import decode, encode, encode_kept, open_kept, open_secrets, token_file_hash
from refresher.grants.envelope import PLAIN, Key, SealedSecret
from refresher.grants.record import Grant, Login, Moved, hidden
from refresher.grants.token_file import derive
from tests.support.samples import NOON, doubt, failure, grant

FULL = grant(
    client_secret=Secret("the-client-secret"),
    id_token=Secret("the-id-token"),
    refresh_params=hidden([("password", "the-parameter")]),
    login=Login(client="given", params=hidden([("hint", "the-login-parameter")])),
    doubt=doubt(),
    failure=failure(),
    spent=("0" * 32,),
)
SECRETS = (
    *("the-client-secret", "the-id-token", "the-parameter", "the-login-parameter", "access-token-of-generation-3"),
    FULL.refresh_token.reveal() if FULL.refresh_token else "",
)


class Keys:
    """Keys that are here."""

    def __init__(self, *keys: Key) -> None:
        self._keys = keys

    def current(self) -> Key | None:
        return self._keys[0]

    def find(self, key_id: str) -> Key:
        for key in self._keys:
            if key.id == key_id:
                return key
        raise KeyUnavailable("it is not here")


KEY = Key(os.urandom(32))
KEYS = Keys(KEY)


def loaded(data: bytes, keys: Keys = KEYS) -> Grant:
    """Return the grant in ``data``."""
    record = decode(data, "linear", keys).record
    assert isinstance(record, Grant)
    return record


def test_a_sealed_record_is_read_back_unchanged() -> None:
    """If it failed, a sealed grant would lose a part with its next write."""
    data, checksum = encode(FULL, KEYS)
    assert loaded(data) == FULL
    assert decode(data, "linear", PLAIN).checksum == checksum
    assert encode(loaded(data))[0] == encode(FULL)[0]
    arriving = Moved(
        name="linear", grant_id="0", generation=1, begun_from="", move_id="0", moved_at=NOON, place="", arriving=FULL
    )
    moved = decode(encode(arriving, KEYS)[0], "linear", KEYS).record
    assert isinstance(moved, Moved)
    assert moved == arriving


def test_the_clear_part_holds_what_decides_and_no_secret() -> None:
    """If it failed, a backup would hold a secret, or a run with nothing due would need the key."""
    data, _ = encode(FULL, KEYS)
    assert [secret for secret in SECRETS if secret.encode() in data] == []
    record = loaded(data, Keys(Key(os.urandom(32))))
    now = doubt().since
    assert policy.decide(record, now) == policy.decide(FULL, now)
    assert record.fingerprint() == FULL.fingerprint()
    wanted = derive(FULL)
    assert wanted is not None
    assert token_file_hash(record) == hashlib.sha256(wanted).hexdigest()
    assert KEY.id.encode() in data
    with pytest.raises(KeyUnavailable):
        open_secrets(record)
    with pytest.raises(KeyUnavailable):
        encode(msgspec.structs.replace(record, failures=9), KEYS)


def test_two_writes_of_one_record_have_nothing_in_common() -> None:
    """If it failed, a nonce would be used twice, which reveals what is sealed."""
    first, second = (json.loads(encode(FULL, KEYS)[0])["sealed"] for _ in range(2))
    assert first["clear"] == second["clear"]
    assert first["nonce"] != second["nonce"]
    assert first["data"] != second["data"]


def with_checksum(data: bytes) -> bytes:
    """Return an envelope with the checksum that fits, as somebody who changes a file would write it."""
    raw = data[data.index(b'"sealed":') + len(b'"sealed":') : data.rindex(b"}")]
    at = data.index(b'"checksum":') + len(b'"checksum":"')
    return data[:at] + hashlib.sha256(raw).hexdigest().encode() + data[at + 64 :]


def test_a_bit_that_is_changed_anywhere_in_an_envelope_is_refused() -> None:
    """If it failed, who can write to a file could change what is sealed, or what is decided about it."""
    small = grant(scope=None, server_url=None)
    data, _ = encode(small, KEYS)
    begins = data.index(b'"sealed":') + len(b'"sealed":')
    accepted = []
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            for attempt in (bytes(changed), *([with_checksum(bytes(changed))] if begins <= at < len(data) - 2 else [])):
                try:
                    open_secrets(loaded(attempt))
                except GrantFileError:
                    continue
                accepted.append((at, bit))
    assert accepted == []


@pytest.mark.parametrize("length", [1, 8, 11, 13, 3000])
def test_a_nonce_of_another_length_is_a_damaged_file(length: int) -> None:
    """If it failed, a file that somebody has changed would end as an internal error, which a person cannot mend."""
    data, _ = encode(FULL, KEYS)
    nonce = json.loads(data)["sealed"]["nonce"].encode()
    changed = with_checksum(data.replace(nonce, base64.b64encode(bytes(length))))
    with pytest.raises(GrantFileError, match="it was changed"):
        open_secrets(loaded(changed))


def test_an_envelope_of_another_record_is_refused() -> None:
    """If it failed, who can write to a file could give a grant the secrets of another one, or those of before."""
    own, other = (json.loads(encode(grant(generation=number), KEYS)[0])["sealed"] for number in (3, 4))
    mixed = {"clear": own["clear"], "nonce": other["nonce"], "data": other["data"]}
    line = {"version": 4, "checksum": "", "sealed": mixed}
    data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
    data = data.replace(b'"checksum":""', b'"checksum":"' + b"0" * 64 + b'"')
    record = loaded(with_checksum(data))
    with pytest.raises(GrantFileError, match="changed after it was sealed"):
        open_secrets(record)


def test_a_kept_answer_is_sealed_for_its_name() -> None:
    """If it failed, an answer that holds the only new tokens could not be opened, or would lie in the clear."""
    answer = b'{"refresh_token":"the-only-copy", cut off'
    data = encode_kept("linear", answer, KEYS)
    assert b"the-only-copy" not in data
    assert open_kept(data, "linear", KEYS) == answer
    assert open_kept(answer, "linear", PLAIN) == answer
    with pytest.raises(GrantFileError):
        open_kept(data, "github", KEYS)
    with pytest.raises(KeyUnavailable):
        open_kept(data, "linear", Keys(Key(os.urandom(32))))


def test_a_key_shows_nothing_of_itself() -> None:
    """If it failed, a key would be in a log line or a report of a crash (I7)."""
    raw = os.urandom(32)
    assert repr(Key(raw)) == f"Key({Key(raw).id})"
    assert raw.hex()[:16] not in repr(Key(raw))
    secret = loaded(encode(FULL, KEYS)[0]).refresh_token
    assert isinstance(secret, SealedSecret)
    assert (repr(secret), secret.reveal()) == ("Secret(...)", SECRETS[-1])
