"""Whose login it is, as the command line shows it: at a server with scripted answers."""

import json
from typing import Any

import pytest

from refresher.storage.health_socket import is_served
from tests.support.answering import Answer, Answering
from tests.support.cli import all_files
from tests.support.command import Command, Done, wait_until
from tests.support.samples import jwt

METADATA = "/.well-known/oauth-authorization-server"
API = "https://api.example"
ANN = {"sub": "ann-1", "email": "ann@x.example"}
BOB = {"sub": "bob-2", "email": "bob@x.example"}


class Server(Answering):
    """An authorization server on which the next login is that of a person."""

    def __init__(self) -> None:
        super().__init__()
        paths = {
            key: f"{self.url}/{key}"
            for key in ("token", "device", "userinfo", "authorize", "revocation", "registration")
        }
        document = {
            "issuer": self.url,
            "response_types_supported": ["code"],
            "device_authorization_endpoint": paths["device"],
        }
        document |= {f"{key}_endpoint": paths[key] for key in ("token", "userinfo", "revocation", "registration")}
        document |= {"authorization_endpoint": paths["authorize"]}
        code = {"device_code": "d", "user_code": "ABCD", "verification_uri": self.url, "interval": 0.1}
        self.answers |= {METADATA: [Answer(200, document)], "/device": [Answer(200, code)]}
        self.answers["/revocation"] = [Answer(200)]
        self.answers["/registration"] = [Answer(201, {"client_id": "client", "redirect_uris": []})]
        self.logins = 0

    def next_login(self, *, userinfo: Answer | None = None, **tokens: Any) -> None:
        """Let the next login get ``tokens`` besides new ones, and ``userinfo``."""
        self.logins += 1
        new = {"access_token": f"access-token-{self.logins}", "refresh_token": f"refresh-token-{self.logins}"}
        self.answers["/token"] = [Answer(200, {**new, "expires_in": 3600, **tokens})]
        self.answers["/userinfo"] = [userinfo or Answer(404)]

    def id_token(self, **claims: Any) -> str:
        """Return an id_token of this server."""
        return jwt(iss=self.url, aud="client", **claims)


def log_in(refresher: Command, server: Server, *options: str) -> Done:
    """Log in by device, with a client that a person gives."""
    return refresher("login", "linear", API, "--issuer", server.url, "--client-id", "client", "--device", *options)


def log_in_registered(refresher: Command, server: Server) -> Done:
    """Log in by device, with a client that refresher registers."""
    return refresher("login", "linear", API, "--issuer", server.url, "--device")


def account(refresher: Command) -> Any:
    """Return the account that status prints as JSON."""
    return json.loads(refresher("status", "--json").stdout)["grants"][0]["account"]


def test_a_login_of_another_person_is_refused_without_replace(refresher: Command) -> None:
    """If it failed, the agents of one person would act with the login of another, and nobody would notice."""
    with Server() as server:
        server.next_login(id_token=server.id_token(**ANN, exp=4e9))
        first = log_in(refresher, server)
        assert (first.code, "logged in: linear for ann@x.example (generation 0)" in first.stdout) == (0, True)
        assert account(refresher) == {"issuer": server.url, "subject": "ann-1", "label": "ann@x.example"}
        assert "ann@x.example" in refresher("status").stdout
        record = refresher.grant("linear")
        assert record.id_token is not None
        assert record.id_token_expires_at == 4e9
        assert record.id_token.reveal() not in (refresher.tokens / "linear.json").read_text()
        before = all_files(refresher)

        server.next_login(id_token=server.id_token(**BOB))
        refused = log_in(refresher, server)
        assert refused.code == 2
        assert "this login is for bob@x.example, and linear is for ann@x.example; nothing" in refused.stderr
        assert all_files(refresher) == before

        assert log_in(refresher, server, "--replace").code == 0
        assert account(refresher)["subject"] == "bob-2"


@pytest.mark.parametrize(
    ("userinfo", "label"),
    [
        (Answer(200, ANN), "ann@x.example"),
        (Answer(200, ["sub"]), None),
        (Answer(200, "<html>"), None),
        (Answer(200, {"email": "ann@x.example"}), None),
        (Answer(401), None),
        (Answer(500), None),
        (Answer(302, "", (("Location", "https://elsewhere.example/"),)), None),
        (Answer(None), None),
    ],
)
def test_userinfo_names_the_account_and_never_ends_a_login(
    refresher: Command, userinfo: Answer, label: str | None
) -> None:
    """If it failed, a server without an id_token would show no account, or a broken userinfo would lose the tokens."""
    with Server() as server:
        server.next_login(userinfo=userinfo)
        assert log_in(refresher, server).code == 0
        assert server.seen.count("GET /userinfo") == 1
        assert (account(refresher) or {}).get("label") == label
        # A rotation sends no such request.
        assert refresher("run-once", "--force").code == 0
        assert server.seen.count("GET /userinfo") == 1


@pytest.mark.parametrize(
    "endpoint", ["http://elsewhere.example/u", "javascript:alert(1)", "https://me:x@as.example/", 5]
)
def test_an_unsafe_userinfo_endpoint_is_not_used(refresher: Command, endpoint: Any) -> None:
    """If it failed, a server could have the new access token sent in the clear, or one bad member would end the login."""
    with Server() as server:
        server.answers[METADATA][0].body["userinfo_endpoint"] = endpoint
        server.next_login()
        done = log_in(refresher, server)
        assert done.code == 0, done.stderr
        assert account(refresher) is None


def test_an_import_with_an_id_token_shows_its_account(refresher: Command) -> None:
    """If it failed, an imported login would have no account until its first rotation, or its id_token would be lost."""
    fields = {"token_endpoint": "https://as.example/token", "client_id": "client", "refresh_token": "a-refresh-token"}
    fields |= {"server_url": API, "issuer": "https://as.example"}
    refresher.import_grant("linear", {**fields, "id_token": jwt(iss="https://as.example", aud="client", **ANN)})
    assert account(refresher)["label"] == "ann@x.example"


def test_a_login_says_whether_a_daemon_keeps_it_fresh(refresher: Command) -> None:
    """If it failed, a person would wait for a daemon that does not run, or start a second one."""
    with Server() as server:
        server.next_login()
        assert "'refresher run' is not running here: start it" in log_in(refresher, server).stdout
        daemon = refresher.start("run")
        try:
            wait_until(lambda: is_served(refresher.directories.health_socket), "the daemon")
            server.next_login()
            assert log_in(refresher, server).stdout.endswith("; 'refresher run' keeps it fresh\n")
        finally:
            daemon.terminate()
            refresher.finish(daemon)
        server.next_login()
        assert "'refresher run' is not running here" in log_in(refresher, server).stdout


def test_the_tokens_of_a_refused_login_are_revoked_unless_another_login_could_end(refresher: Command) -> None:
    """If it failed, tokens that nobody stores would stay valid, or to revoke them would end the login of another name."""
    with Server() as server:
        server.next_login(id_token=server.id_token(**ANN))
        assert log_in_registered(refresher, server).code == 0
        server.next_login(id_token=server.id_token(**BOB))
        refused = log_in_registered(refresher, server)
        assert refused.code == 2
        assert refused.stderr.endswith(". The new login is not stored; it is revoked at the server\n")
        assert server.seen.count("POST /revocation") == 2, "the refresh token and the access token"

        fields = {"token_endpoint": f"{server.url}/token", "client_id": "client", "refresh_token": "of-bob-too"}
        more = {"issuer": server.url, "server_url": API, "id_token": server.id_token(**BOB)}
        refresher.import_grant("notion", fields | more)
        server.next_login(id_token=server.id_token(**BOB))
        refused = log_in_registered(refresher, server)
        assert refused.code == 2
        assert "stay valid at the server: to revoke them could end the login notion" in refused.stderr
        assert server.seen.count("POST /revocation") == 2


def test_a_refused_login_says_that_its_server_cannot_revoke_it(refresher: Command) -> None:
    """If it failed, a person would believe that no token of a refused login is left."""
    with Server() as server:
        server.next_login(id_token=server.id_token(**ANN))
        assert log_in_registered(refresher, server).code == 0
        server.answers["/revocation"] = [Answer(None)]
        server.next_login(id_token=server.id_token(**BOB))
        refused = log_in_registered(refresher, server)
        assert "stay valid at the server: refresher could not revoke them" in refused.stderr


def test_tokens_of_a_client_that_a_person_gave_are_not_revoked(refresher: Command) -> None:
    """If it failed, a refused login would end the login of the same account and client on another machine."""
    with Server() as server:
        server.next_login(id_token=server.id_token(**ANN))
        assert log_in(refresher, server).code == 0
        server.next_login(id_token=server.id_token(**BOB))
        assert "stay valid at the server: to revoke them could end other logins" in log_in(refresher, server).stderr
        assert "POST /revocation" not in server.seen


def test_the_subject_of_an_access_token_is_not_compared_with_that_of_an_id_token(refresher: Command) -> None:
    """If it failed, a person who adds the scope openid would be refused as another person, and lose the login."""
    with Server() as server:
        server.next_login(access_token=jwt(iss=server.url, sub="ann@x.example"))
        assert log_in(refresher, server).code == 0
        assert account(refresher)["subject"] == "ann@x.example"
        server.next_login(id_token=server.id_token(**ANN))
        assert log_in(refresher, server).code == 0
        assert account(refresher) == {"issuer": server.url, "subject": "ann-1", "label": "ann@x.example"}
