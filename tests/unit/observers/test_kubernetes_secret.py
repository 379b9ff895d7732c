"""The token in a Secret. A scripted HTTPS server stands for the API of a cluster: no package has a real kube-apiserver."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import pytest

from refresher.common.errors import RefresherError
from refresher.config import resolve
from refresher.grants.outputs import SecretOutput
from refresher.observers import kubernetes_secret, outputs
from refresher.observers.kubernetes_secret import apply
from refresher.operations.events import Event, happened
from tests.support import keys
from tests.support.listener import Listening
from tests.support.published import Published

TOKEN = "the-access-token-of-a-pod"
ACCOUNT = "the-service-account-token"


class Cluster(Listening):
    """Answers each request with ``status``; ``status`` 0 answers nothing until the end. It accepts the token ``account``."""

    def __init__(self, certificate: Path) -> None:
        self.status = 200
        self.account = ACCOUNT
        self.seen: list[tuple[str, Any, dict[str, str]]] = []
        self.ended = threading.Event()
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def do_PATCH(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                cluster.seen.append((self.path, body, dict(self.headers.items())))
                if cluster.status == 0:
                    cluster.ended.wait(90)
                    return
                accepted = self.headers["Authorization"] == f"Bearer {cluster.account}"
                # An API server quotes what it was sent; no message of refresher may.
                answer = json.dumps(
                    {"kind": "Status", "message": f"cannot use {body} of {self.headers['Authorization']}"}
                )
                self.send_response(cluster.status if accepted else 401)
                self.send_header("Content-Length", str(len(answer)))
                self.send_header("Location", "https://127.0.0.1:9/")
                self.end_headers()
                self.wfile.write(answer.encode())

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's signature
                return

        super().__init__(Handler)
        self._server.socket = keys.server_context(certificate, "localhost").wrap_socket(
            self._server.socket, server_side=True
        )


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster, and the service account of a pod in it."""
    (tmp_path / "token").write_text(f"{ACCOUNT}\n")
    (tmp_path / "namespace").write_text("agents")
    with Cluster(tmp_path / "ca.crt") as made:
        monkeypatch.setattr(kubernetes_secret, "ACCOUNT", tmp_path)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "localhost")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", made.url.rpartition(":")[2])
        yield made
        made.ended.set()


def failed(output: SecretOutput, seconds: float = 60.0) -> str:
    """Return the message of a failed write, which holds no secret."""
    with pytest.raises(RefresherError) as error:
        apply(output, TOKEN, seconds=seconds)
    for secret in (TOKEN, ACCOUNT, base64.b64encode(TOKEN.encode()).decode()):
        assert secret[:8] not in str(error.value)
    return str(error.value)


LINEAR = SecretOutput(grant="linear", secret="linear")


@pytest.mark.parametrize("status", [200, 201])
def test_the_key_is_applied_with_a_manager_of_its_own(cluster: Cluster, status: int) -> None:
    """If it failed, an agent would not get its token, or two outputs of one Secret would remove the key of the other."""
    cluster.status = status
    apply(LINEAR, TOKEN)
    apply(SecretOutput(grant="git", secret="all", namespace="other", key="git"), TOKEN)
    (path, sent, headers), (other, other_sent, _) = cluster.seen
    assert urlsplit(path).path == "/api/v1/namespaces/agents/secrets/linear"
    assert parse_qs(urlsplit(path).query) == {"fieldManager": ["refresher-token"], "force": ["true"]}
    assert headers["Content-Type"] == "application/apply-patch+yaml"
    assert sent == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "linear", "namespace": "agents"},
        "data": {"token": base64.b64encode(TOKEN.encode()).decode()},
    }
    assert urlsplit(other).path == "/api/v1/namespaces/other/secrets/all"
    assert parse_qs(urlsplit(other).query)["fieldManager"] == ["refresher-git"]
    for each in (sent, other_sent):
        for version in ("1.29", kubernetes_validate.latest_version()):
            kubernetes_validate.validate(each, version, strict=True)


def test_without_a_token_the_key_is_removed_and_a_dry_run_sends_none(cluster: Cluster) -> None:
    """If it failed, a token would outlive its login, or doctor would change the cluster or send a token."""
    apply(LINEAR, None)
    apply(LINEAR, None, dry_run=True)
    (path, sent, headers), (dry, dry_sent, _) = cluster.seen
    assert (sent, headers["Content-Type"]) == ({"data": {"token": None}}, "application/merge-patch+json")
    assert "force" not in path, "the API accepts it for apply only"
    assert dry_sent == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "linear", "namespace": "agents"},
    }  # fmt: skip
    kubernetes_validate.validate(dry_sent, "1.29", strict=True)
    assert ("dryRun=All" in path, "dryRun=All" in dry) == (False, True)


def test_a_secret_that_does_not_exist_is_not_made_for_a_removed_grant(cluster: Cluster) -> None:
    """If it failed, each removed grant would leave an empty Secret, or a warning without an end."""
    cluster.status = 404
    apply(LINEAR, None)
    ((_, _, headers),) = cluster.seen
    assert headers["Content-Type"] == "application/merge-patch+json", "this creates nothing"


def test_a_secret_is_sent_again_only_if_its_token_has_changed_or_after_a_while(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, each Secret would be a request each 30 s, or a new token or one after a fault would not arrive."""
    published = Published(tmp_path / "state")
    observer = outputs.Outputs([LINEAR], resolve({"state_dir": str(tmp_path / "state")}, None).directories)

    def sent_after(*events: Event) -> int:
        before = len(cluster.seen)
        observer.observe(events)
        return len(cluster.seen) - before

    published.put(1)
    cluster.status = 500
    assert (sent_after(outputs.EVERY), sent_after(outputs.EVERY)) == (1, 1), "a fault is no success"
    cluster.status = 200
    assert (sent_after(outputs.EVERY), sent_after(outputs.EVERY)) == (1, 0)
    assert sent_after(happened("linear", "demanded")) == 0
    published.put(2)
    assert (sent_after(outputs.EVERY), sent_after(outputs.EVERY)) == (1, 0)
    published.put(3, access_token=None, state="removed")
    assert (sent_after(outputs.EVERY), sent_after(outputs.EVERY)) == (1, 0)
    monkeypatch.setattr(outputs, "_REPEAT", 0.0)
    assert sent_after(outputs.EVERY) == 1


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (403, "may not patch (or create) the Secret linear in agents: give it the Role in deploy/kubernetes/outputs"),
        (404, "has no namespace agents"),
        (409, "was changed at the same time"),
        (422, "answered 422 ("),
        (307, "answered 307 ("),
        (500, "answered 500 ("),
    ],
)
def test_each_refusal_says_what_to_do_and_no_secret(cluster: Cluster, status: int, words: str) -> None:
    """If it failed, a person would not know which right is missing, or the log would show a token."""
    cluster.status = status
    assert words in failed(LINEAR)
    assert len(cluster.seen) == 1, "no redirect is followed, and nothing is repeated"


def test_a_service_account_token_that_has_expired_is_read_again(cluster: Cluster, tmp_path: Path) -> None:
    """If it failed, no token would be written an hour after the start of the pod."""
    cluster.account = "the-next-token-of-the-account"
    assert "refuses the service account token" in failed(LINEAR)
    (tmp_path / "token").write_text(cluster.account)
    apply(LINEAR, TOKEN)


def test_a_cluster_that_is_slow_away_or_another_one_is_reported(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, an API that never answers would hold the outputs, or another server would get a token."""
    cluster.status = 0
    assert "does not answer in time" in failed(LINEAR, seconds=0.3)
    cluster.status = 200
    seen = len(cluster.seen)
    keys.certificate(tmp_path / "ca.crt", "localhost")
    assert "cannot be reached or verified" in failed(LINEAR)
    assert len(cluster.seen) == seen
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "9")
    assert "localhost:9 cannot be reached" in failed(LINEAR)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    assert "does not run in a cluster" in failed(LINEAR)
