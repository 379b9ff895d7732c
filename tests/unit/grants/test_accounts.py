"""Whose login it is: the tokens that name an account, and what a rotation does to it."""

from typing import Any

import msgspec
import pytest

from refresher.common.secret import Secret
from refresher.grants import accounts
from refresher.grants.outcome import TokensIssued
from refresher.grants.record import Account, Grant, Login
from refresher.grants.transition import apply
from refresher.operations.result import Result
from tests.support.samples import NOON, at, grant, jwt

ISSUER = "https://as.example"
ANN = {"iss": ISSUER, "sub": "ann-1", "aud": "client"}
BOB = ANN | {"sub": "bob-2", "email": "bob@x.example"}
NO_ACCOUNT: tuple[str, str | None] | None = None


@pytest.mark.parametrize(
    ("id_token", "access_token", "expected"),
    [
        (ANN, None, ("ann-1", None)),
        (ANN | {"email": "ann@x.example", "name": "Ann"}, None, ("ann-1", "ann@x.example")),
        (ANN | {"preferred_username": "ann", "upn": "ann@y.example"}, None, ("ann-1", "ann")),
        (ANN | {"email": "\x1b[31mann", "name": "Ann"}, None, ("ann-1", "Ann")),
        (ANN | {"email": 5, "name": " "}, None, ("ann-1", None)),
        (ANN | {"name": "n" * 200}, None, ("ann-1", "n" * 100)),
        (ANN | {"aud": ["other", "client"]}, None, ("ann-1", None)),
        (ANN | {"iss": "as.example"}, None, ("ann-1", None)),  # as Google's can be
        (ANN | {"sub": 17}, None, ("17", None)),
        (ANN | {"aud": "another client"}, None, NO_ACCOUNT),
        (ANN | {"iss": "https://other.example"}, None, NO_ACCOUNT),
        (ANN | {"aud": "another client"}, BOB, ("bob-2", "bob@x.example")),
        (ANN | {"sub": "s" * 256}, None, NO_ACCOUNT),
        (ANN | {"sub": "a\nb"}, None, NO_ACCOUNT),
        (ANN | {"sub": True}, None, NO_ACCOUNT),
        (ANN | {"sub": None}, None, NO_ACCOUNT),
        (None, BOB | {"aud": "https://api.example"}, ("bob-2", "bob@x.example")),
        (None, BOB | {"sub": "client"}, NO_ACCOUNT),  # RFC 9068 section 2.2
        (ANN, BOB, ("ann-1", None)),
    ],
)
def test_an_account_comes_from_a_token_for_this_client(
    id_token: dict[str, Any] | None, access_token: dict[str, Any] | None, expected: tuple[str, str | None] | None
) -> None:
    """If it failed, a login would count as that of another person, or a server could control the terminal."""
    id_secret, access_secret = (None if each is None else Secret(jwt(**each)) for each in (id_token, access_token))
    found = accounts.account_of(id_secret, access_secret, issuer=ISSUER, client_id="client")
    assert (None if found is None else (found.subject, found.label)) == expected


@pytest.mark.parametrize("token", ["opaque", "a.b.c", "a.W10.c", "a.bnVsbA.c"])
def test_a_token_without_claims_names_no_account(token: str) -> None:
    """If it failed, an opaque token would end a login in a traceback."""
    assert accounts.account_of(Secret(token), Secret(token), issuer=ISSUER, client_id="client") is None


def test_accounts_of_two_issuers_are_not_compared() -> None:
    """If it failed, a login would be refused although the subjects of two issuers say nothing about each other."""
    ann = Account(issuer=ISSUER, subject="1")
    assert accounts.is_other(ann, Account(issuer=ISSUER, subject="2"))
    assert not accounts.is_other(ann, Account(issuer=ISSUER, subject="1", label="another label"))
    assert not accounts.is_other(ann, Account(issuer="https://other.example", subject="2"))
    assert not accounts.is_other(ann, None)


def _rotate(before: Grant, id_token: str | None) -> Grant:
    tokens = TokensIssued(
        access_token=Secret("new-access"),
        token_type="Bearer",
        expires_in=3600.0,
        expires_at=None,
        refresh_token=Secret(f"refresh-{before.generation}"),
        scope=None,
        id_token=None if id_token is None else Secret(id_token),
    )
    moment = at(NOON + 3000)
    return apply(before, tokens, sent=moment, now=moment, demanded=False, generation=before.generation + 1)


def test_an_answer_without_id_token_keeps_the_earlier_one() -> None:
    """If it failed, a server that sends an id_token only at the login would seem to have withdrawn it."""
    first = _rotate(grant(issuer=ISSUER), jwt(**ANN, exp=NOON + 60))
    assert (first.account, first.id_token_expires_at) == (Account(issuer=ISSUER, subject="ann-1"), NOON + 60)
    kept = _rotate(first, None)
    assert (kept.account, kept.id_token, kept.id_token_expires_at) == (first.account, first.id_token, NOON + 60)
    newer = _rotate(kept, jwt(**ANN))
    assert (newer.id_token, newer.id_token_expires_at) == (Secret(jwt(**ANN)), None)


def test_a_refresh_that_names_another_account_keeps_the_tokens_and_warns_once() -> None:
    """If it failed, a swapped account would lose the refresh token, pass unnoticed, or warn at each rotation."""
    login = grant(issuer=ISSUER, account=Account(issuer=ISSUER, subject="ann-1", label="ann@x.example"))
    swapped = _rotate(login, jwt(**BOB))
    assert (swapped.account, swapped.refresh_token) == (login.account, Secret("refresh-3"))
    assert "the server now names bob@x.example" in Result.after_exchange(login, swapped).detail
    again = _rotate(swapped, jwt(**BOB, iat=NOON))
    assert "the server now names" not in Result.after_exchange(swapped, again).detail
    assert "the server now names" not in Result.after_exchange(again, _rotate(again, None)).detail


@pytest.mark.parametrize(
    "changes",
    [{"refresh_token": None}, {"login": Login(client="given", way="client_credentials"), "refresh_token": None}],
    ids=["imported", "logged in"],
)
def test_client_credentials_have_no_account(changes: dict[str, Any]) -> None:
    """If it failed, the client would count as a person, and a new client would be refused."""
    before = grant(issuer=ISSUER, **changes)
    after = msgspec.structs.replace(before, **accounts.identity(before, Secret(jwt(**ANN)), Secret(jwt(**BOB))))
    assert (after.account, after.id_token) == (None, None)
