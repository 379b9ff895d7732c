"""The text of a secret does not appear in output, and is masked in the messages of servers (I7)."""

import pickle
import traceback
from collections.abc import Callable
from functools import partial
from random import Random
from urllib.parse import quote, quote_plus

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refresher.common.secret import Secret, mask
from tests.support.peak import MIB, peak
from tests.support.samples import grant

TEXT = "s3cret-refresh-token-value"


def test_no_conversion_to_text_shows_a_secret() -> None:
    """If it failed, one careless f-string would write a refresh token into a log."""
    secret = Secret(TEXT)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>40}", "%s" % secret, repr([secret])]  # noqa: UP031  one of the conversions
    shown += [repr(grant(refresh_token=secret, client_secret=secret, access_token=secret))]
    try:
        raise ValueError(secret)
    except ValueError:
        shown.append(traceback.format_exc())
    assert not [text for text in shown if TEXT in text]


def test_a_secret_cannot_be_pickled_or_encoded_as_json() -> None:
    """If it failed, a library that writes objects to disk would write the token too."""
    with pytest.raises(TypeError):
        pickle.dumps(Secret(TEXT))
    with pytest.raises(TypeError):
        msgspec.json.encode(Secret(TEXT))


def test_equal_texts_are_equal_secrets_with_one_fingerprint() -> None:
    """If it failed, a refresh token that did not change would count as used."""
    assert Secret(TEXT) == Secret(TEXT)
    assert Secret(TEXT) != Secret("another")
    assert len({Secret(TEXT), Secret(TEXT)}) == 1
    assert Secret(TEXT).fingerprint() == Secret(TEXT).fingerprint() != Secret("another").fingerprint()
    assert TEXT not in Secret(TEXT).fingerprint()


PARTS = Secret("1//0gAbC/dEf+GhI=jKlMnOpQ/rSt!aB3$dE6*gH9:jK2|xY")


@pytest.mark.parametrize(
    "echo",
    [
        quote(PARTS.reveal(), safe=""),
        quote_plus(PARTS.reveal()),
        f"{PARTS.reveal()[:20]} {PARTS.reveal()[20:]}",
        PARTS.reveal()[:19],
        PARTS.reveal()[:-1],
        PARTS.reveal()[3:9],
    ],
)
def test_a_part_or_an_encoding_of_a_secret_is_masked_too(echo: str) -> None:
    """If it failed, a part of a token that a server quotes would appear in logs and in token files."""
    masked = mask(f"the token {echo} is bad", (PARTS,))
    assert masked.startswith("the token [masked]")
    assert masked.endswith("is bad")
    rest = masked.replace("[masked]", "\0")
    assert not [at for at in range(len(rest) - 5) if rest[at : at + 6] in PARTS.reveal()]


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("the refresh token was revoked by its owner", "the refresh token was revoked by its owner"),
        ("refresh_token_not_found in this_very_long_name", "refresh_token_not_found in this_very_long_name"),
        ("AADSTS700082: The refresh token has expired", "AADSTS700082: The refresh token has expired"),
        ("token 8xLOxBtZp8Qw9xLOxBtZp8Qw is bad", "token [masked] is bad"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "[masked]"),
        ("known short-one here", "known [masked] here"),
        ("two\r\nlines\x1b[2J", "two lines [2J"),
    ],
)
def test_the_message_of_a_server_stays_readable_and_tokens_in_it_are_masked(words: str, kept: str) -> None:
    """If it failed, a person could not read why a grant was rejected, or the log would show the token."""
    assert mask(words, (Secret("short-one"), None, Secret(""))) == kept


@given(st.text(), st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8), st.text())
def test_a_known_secret_is_masked_in_any_text(before: str, secret: str, after: str) -> None:
    """If it failed, a token would be shown if certain characters stand before or after it."""
    masked = mask(f"{before}{secret}{after}", (Secret(secret),))
    assert secret not in masked.replace("[masked]", "\0")
    assert len(masked) <= 303


@pytest.mark.parametrize("size", [6, 4095, 4097, 9000])
@pytest.mark.parametrize("encoded", [str, partial(quote, safe=""), quote_plus])
def test_each_part_of_a_long_secret_is_masked(size: int, encoded: Callable[[str], str]) -> None:
    """If it failed, a part of a long token would be shown because of its place in the token."""
    numbers = Random(size)
    secret = "".join(numbers.choices("abcXYZ019-._~+/= !:", k=size))
    form = encoded(secret)
    begins = {at for edge in range(0, len(form) + 1, 4096) for at in range(edge - 6, edge + 6)}
    begins |= {numbers.randrange(len(form)) for _ in range(40)}
    for part in {form[at : at + 6] for at in begins if 0 <= at <= len(form) - 6}:
        assert mask(f"<{part}>", (Secret(secret),)) == "<[masked]>"


def test_masking_needs_memory_for_the_text_and_not_for_the_secret() -> None:
    """If it failed, eight refusals that quote a very large refresh token would end a daemon with a memory limit."""
    program = """
import secrets
from refresher.common.secret import Secret, mask
token = secrets.token_urlsafe(525_000)
assert "[masked]" in mask(f"the token {token[1000:1200]} is bad", (Secret(token), Secret(token[::-1])))
"""
    assert peak(program) < 80 * MIB
