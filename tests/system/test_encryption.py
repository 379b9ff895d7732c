"""Sealed grants on the command line: enable, rotate, rekey, disable, and what happens without the key."""

import json
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from refresher.common.secret import Secret
from refresher.grants.record import Tombstone
from tests.conftest import need
from tests.support.answering import Answer, Answering
from tests.support.browser import as_browser
from tests.support.command import Command, wait_until
from tests.support.daemon import heard, running, stopped
from tests.support.documents import block
from tests.support.mcp_login import MCPLogin
from tests.support.parts import no_strace
from tests.support.sealed import in_the_clear, make_key, use_keys
from tests.support.token_server import TokenServer
from tests.support.vault import Vault

PAGE = "refresher/README.md"


@pytest.fixture
def server(vault: Vault) -> Iterator[TokenServer]:
    """A token endpoint."""
    with TokenServer(lambda _: 3600.0) as running:
        yield running


@pytest.fixture
def sealed(refresher: Command, server: TokenServer) -> Command:
    """The command with two grants that were sealed after they were plain."""
    refresher.environment["REFRESHER_SPILL_DIR"] = str(refresher.home / "spill")
    for name in ("linear", "github"):
        refresher.bring(name, server.grant(name, client_secret=f"secret-of-{name}"))
    assert refresher("run-once").code == 0
    use_keys(refresher, make_key(refresher.home, "first"))
    done = refresher("encryption", "enable")
    assert (done.code, done.stdout) == (0, "sealed: 2 grants, 2 of them by this run\n"), done.stderr
    return refresher


def forms(refresher: Command) -> dict[str, str]:
    """Return the form of each grant."""
    shown = json.loads(refresher("encryption", "status", "--json").stdout)
    return {grant["name"]: grant["form"] for grant in shown["grants"]}


def test_a_sealed_grant_rotates_and_no_secret_of_it_is_in_the_clear(sealed: Command, server: TokenServer) -> None:
    """If it failed, a backup of the state directory would hold refresh tokens, or a sealed grant would not rotate."""
    secrets = ("secret-of-linear", "secret-of-github")
    assert in_the_clear(sealed, server, *secrets) == []
    before = sealed.refresh_token("linear")
    done = sealed("run-once", "--force", "--json")
    assert {result["outcome"] for result in done.results.values()} == {"rotated"}, done.stderr
    assert sealed.refresh_token("linear") != before
    assert in_the_clear(sealed, server, *secrets) == []
    assert forms(sealed) == {"linear": "current", "github": "current"}
    assert sealed("encryption", "enable").stdout == "sealed: 2 grants, 0 of them by this run\n"


def test_without_the_key_nothing_due_is_decided_and_nothing_else_is_done(sealed: Command, server: TokenServer) -> None:
    """If it failed, each cron run would need the key, or a lost key would cost tokens."""
    path = sealed.home / "first.key"
    path.rename(sealed.home / "elsewhere")
    files = {each: each.read_bytes() for each in sealed.state.glob("grants/*.json")}
    done = sealed("run-once", "--json")
    assert {result["outcome"] for result in done.results.values()} == {"not_due"}
    asked = {name: len(times) for name, times in server.asked.items()}
    done = sealed("run-once", "--force", "--json")
    assert done.code == 2
    assert {result["outcome"] for result in done.results.values()} == {"invalid_grant_file"}
    assert "cannot read the key" in done.results["linear"]["detail"]
    assert {name: len(times) for name, times in server.asked.items()} == asked
    assert {each: each.read_bytes() for each in files} == files
    assert sealed("status").code == 0
    assert set(forms(sealed).values()) == {"unknown"}


def test_the_commands_of_the_page_seal_the_grants(refresher: Command, server: TokenServer) -> None:
    """If it failed, a person who follows the page would have a key that cannot be used, or that others can read."""
    refresher.bring("linear", server.grant("linear"))
    directory = refresher.home / ".config/refresher"
    directory.mkdir(parents=True)
    subprocess.run(block(PAGE, "sh", "openssl"), shell=True, check=True, env=refresher.environment)
    (directory / "config.toml").write_text(block(PAGE, "toml", "encryption_key"))
    assert refresher("encryption", "enable").code == 0
    assert forms(refresher) == {"linear": "current"}
    assert refresher("run-once", "--json").outcome == "rotated"
    assert refresher("doctor", "--offline").code in (0, 1)


def test_an_answer_that_cannot_be_read_is_kept_sealed(refresher: Command, server: TokenServer) -> None:
    """If it failed, the only new refresh token would lie in the clear, or nobody could get at it."""
    refresher.environment["REFRESHER_SPILL_DIR"] = str(refresher.home / "spill")  # the default one is shared
    use_keys(refresher, make_key(refresher.home, "first"))
    answer = '{"refresh_token": "the-only-copy-of-it", "access_token": {'
    with Answering(**{"/token": Answer(200, answer)}) as wrong:
        refresher.import_grant("linear", server.grant("linear", token_endpoint=f"{wrong.url}/token"))
        assert refresher("run-once", "--json").outcome == "in_doubt"
    (kept,) = refresher.directories.grants.glob("linear.answer.*")
    assert in_the_clear(refresher, server, "the-only-copy") == []
    assert refresher("encryption", "show", kept.name).stdout == answer


def test_an_answer_that_was_kept_is_opened(sealed: Command) -> None:
    """If it failed, a person could not get at the new tokens in an answer that refresher could not read."""
    path = sealed.directories.grants / "linear.answer.1700000000"
    path.touch(mode=0o600)
    path.write_text("an answer")
    assert sealed("encryption", "status").code == 1
    assert sealed("encryption", "enable").code == 0
    assert "an answer" not in path.read_text()
    assert sealed("encryption", "show", path.name).stdout == "an answer"
    assert sealed("encryption", "show", str(path)).stdout == "an answer"
    for other in ("linear.json", str(sealed.directories.record("linear")), "/etc/shadow"):
        done = sealed("encryption", "show", other)
        assert (done.code, "there is no such file" in done.stderr) == (2, False)
    assert sealed("encryption", "show", "../linear.answer.1700000000").code == 2


@pytest.mark.parametrize("trouble", ["missing", "other", "exposed"])
def test_the_doctor_finds_a_key_that_cannot_be_used(sealed: Command, trouble: str) -> None:
    """If it failed, a person would search the cause of each grant that is not rotated."""
    path = sealed.home / "first.key"
    if trouble == "missing":
        path.unlink()
    elif trouble == "exposed":
        path.chmod(0o644)
    else:
        use_keys(sealed, make_key(sealed.home, "another"))
    done = sealed("doctor", "--offline", "--json")
    found = {finding["code"] for finding in json.loads(done.stdout)["findings"]}
    assert "key_unavailable" in found
    use_keys(sealed, None)
    assert "key_unavailable" in sealed("doctor", "--offline", "--json").stdout


def test_the_doctor_finds_a_grant_that_is_not_sealed(sealed: Command, server: TokenServer) -> None:
    """If it failed, a login of a command without the key would stay in clear text unseen."""
    keys = sealed.environment.pop("REFRESHER_ENCRYPTION_KEY")
    sealed.bring("slack", server.grant("slack"))
    sealed.environment["REFRESHER_ENCRYPTION_KEY"] = keys
    found = json.loads(sealed("doctor", "--offline", "--json").stdout)["findings"]
    assert [finding["what"] for finding in found if finding["code"] == "seal_differs"] == [
        "slack: not in the form that is configured"
    ]


def test_a_daemon_goes_on_while_its_grants_are_sealed(refresher: Command, server: TokenServer) -> None:
    """If it failed, somebody would have to stop all rotations to begin with encryption, or to change the key."""
    for name in ("linear", "github"):
        refresher.bring(name, server.grant(name))
    config = refresher.home / ".config/refresher/config.toml"
    config.parent.mkdir(parents=True)
    config.touch()
    with running(refresher) as process:
        wait_until(lambda: len(server.asked["linear"]) + len(server.asked["github"]) == 2, "the daemon rotates")
        first, second = make_key(refresher.home, "first"), make_key(refresher.home, "second")
        config.write_text(f'encryption_key = "file:{first}"\nprevious_encryption_key = "file:{second}"\n')
        process.send_signal(signal.SIGHUP)
        heard(process, "configuration reloaded")
        assert refresher("encryption", "enable").code == 0
        demands = refresher.directories.demands
        (demands / f"linear.{refresher.token('linear').generation}").mkdir()
        wait_until(lambda: len(server.asked["linear"]) == 2, "the daemon rotates a sealed grant")
        wait_until(lambda: set(forms(refresher).values()) == {"current"}, "it is sealed")
        # The new key gets the path of the old one: the configuration stays as it is.
        old, new = first.read_bytes(), second.read_bytes()
        first.write_bytes(new)
        second.write_bytes(old)
        assert set(forms(refresher).values()) == {"previous"}
        process.send_signal(signal.SIGHUP)
        heard(process, "configuration reloaded")
        (demands / f"github.{refresher.token('github').generation}").mkdir()
        wait_until(lambda: forms(refresher)["github"] == "current", "it is sealed with the new key")
        log = stopped(refresher, process)
    assert "invalid_grant_file" not in log
    assert in_the_clear(refresher, server) == []


def test_a_daemon_without_the_key_waits_for_it(sealed: Command, server: TokenServer) -> None:
    """If it failed, a key management service that is away for a minute would need a restart of refresher."""

    def health() -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(sealed("health", "--json").stdout)
        return shown

    path, elsewhere = sealed.home / "first.key", sealed.home / "elsewhere"
    path.rename(elsewhere)
    with running(sealed) as process:
        (sealed.directories.demands / f"linear.{sealed.token('linear').generation}").mkdir()
        lines = iter(process.stderr.readline, "") if process.stderr else iter(())
        assert any("cannot read the key" in line for line in lines)
        wait_until(lambda: "linear" in health()["invalid_grant_file"], "the daemon says so")
        asked = len(server.asked["linear"])
        elsewhere.rename(path)
        wait_until(lambda: len(server.asked["linear"]) == asked + 1, "the daemon rotates with the key")
        stopped(sealed, process)


def test_a_service_whose_key_is_gone_says_so_everywhere(refresher: Command, server: TokenServer) -> None:
    """If it failed, nobody would learn that a service cannot rotate, until all tokens have expired."""
    config = refresher.home / ".config/refresher/config.toml"
    config.parent.mkdir(parents=True)
    hook, seen = refresher.home / "hook.sh", refresher.home / "seen"
    hook.touch(mode=0o700)
    hook.write_text(f'#!/bin/sh\necho "$REFRESHER_HOOK $(cat)" >>{seen}\n')
    key, elsewhere = make_key(refresher.home, "first"), refresher.home / "elsewhere"
    hooks = f'[hooks]\non_failing = "{hook}"\non_restored = "{hook}"\n'
    config.write_text(f'encryption_key = "file:{key}"\nlisten = "127.0.0.1:0"\n{hooks}')
    refresher.bring("linear", server.grant("linear"))
    assert refresher("run-once").code == 0
    key.rename(elsewhere)
    with running(refresher) as process:
        address = heard(process, "serving http://")[-1].partition("http://")[2].partition("/")[0]
        (refresher.directories.demands / f"linear.{refresher.token('linear').generation}").mkdir()
        wait_until(seen.exists, "the hook runs")
        page = urllib.request.urlopen(f"http://{address}/metrics").read().decode()
        assert 'refresher_grants{state="invalid_grant_file"} 1.0' in page
        assert 'refresher_grants{state="active"} 0.0' in page
        assert 'refresher_grant_state{name="linear",state="invalid_grant_file"} 1.0' in page
        shown = json.loads(refresher("status", "--json").stdout)["grants"][0]
        assert (shown["state"], shown["overdue"]) == ("invalid_grant_file", False)
        assert refresher("status", "--exit-code").code == 2
        assert "! " in refresher("events").stdout
        elsewhere.rename(key)
        wait_until(lambda: "on_restored" in seen.read_text(), "the hook runs again")
        stopped(refresher, process)
    first = seen.read_text().splitlines()[0]
    assert first.startswith("on_failing ")
    told = json.loads(first.removeprefix("on_failing "))
    assert (told["state"], "cannot read the key" in told["detail"]) == ("invalid_grant_file", True)
    assert refresher("status", "--exit-code").code == 0


def test_a_logout_without_the_key_names_the_removal(sealed: Command) -> None:
    """If it failed, a person would read that a grant is deleted, and it would still be there."""
    use_keys(sealed, make_key(sealed.home, "another"))
    done = sealed("logout", "linear")
    assert (done.code, "'refresher remove linear'" in done.stderr) == (2, True)
    assert "deleted with the grant" not in done.stderr
    assert sealed("remove", "linear").code == 0


def test_a_login_of_a_client_whose_secret_is_lost_names_both_options(refresher: Command, server: TokenServer) -> None:
    """If it failed, a person would read that the client is for another server, and give one option after the other."""
    use_keys(refresher, make_key(refresher.home, "first"))
    secret = refresher.home / "secret"
    secret.touch(mode=0o600)
    secret.write_text("the-secret-of-the-client")
    endpoint = server.grant("cc")["token_endpoint"]
    client = ("--client-id", "c", "--client-secret-file", str(secret))
    url = str(endpoint).replace("/token", "/mcp")
    way = ("--client-credentials", "--token-endpoint", str(endpoint), "--no-verify")
    done = refresher("login", "cc", url, *way, *client)
    assert done.code == 0, done.stderr
    use_keys(refresher, make_key(refresher.home, "another"))
    for given in ((), client[2:]):
        done = refresher("login", "cc", "--no-verify", *given)
        assert (done.code, "--client-id c and --client-secret-file" in done.stderr) == (2, True), done.stderr
    assert refresher("login", "cc", "--no-verify", *client).code == 0


def test_a_key_is_replaced_and_taken_back(sealed: Command, server: TokenServer) -> None:
    """If it failed, a key that somebody has seen could not be replaced, or nobody could end the encryption."""
    first, second = sealed.home / "first.key", make_key(sealed.home, "second")
    assert sealed("encryption", "rekey").code == 2
    use_keys(sealed, second, first)
    assert set(forms(sealed).values()) == {"previous"}
    assert sealed("run-once", "linear", "--force").code == 0
    assert forms(sealed) == {"linear": "current", "github": "previous"}
    secrets = {name: (sealed.refresh_token(name), sealed.grant(name).client_secret) for name in ("linear", "github")}
    assert sealed("encryption", "rekey").stdout == "sealed with the new key: 2 grants, 1 of them by this run\n"
    use_keys(sealed, second)
    assert set(forms(sealed).values()) == {"current"}
    assert sealed("encryption", "disable").code == 2
    use_keys(sealed, None, second)
    assert sealed("encryption", "disable").stdout == "plain: 2 grants, 2 of them by this run\n"
    use_keys(sealed, None)
    assert set(forms(sealed).values()) == {"plain"}
    assert secrets == {name: (sealed.refresh_token(name), sealed.grant(name).client_secret) for name in secrets}
    assert sealed("run-once", "--force").code == 0


@pytest.mark.parametrize(
    "cut_off", [None, "connect", "rename"], ids=["healthy", "before the request", "after the answer"]
)
@pytest.mark.parametrize("command", ["import", "remove"])
def test_a_grant_whose_key_is_lost_can_be_replaced_and_removed(
    sealed: Command, server: TokenServer, command: str, cut_off: str | None
) -> None:
    """If it failed, a lost key would leave names that nobody can use, or a generation would fall."""
    if cut_off:
        need(no_strace())
        killed = ("-e", f"trace={cut_off}", "-e", f"inject={cut_off}:signal=KILL:when=1")
        prefix = ("strace", "-f", "-qq", "-o", "/dev/null", *killed)
        sealed.finish(sealed.start("run-once", "linear", "--force", prefix=prefix))
        assert {"linear.intent", "linear.next"} <= set(sealed.leftovers())
    before = sealed.grant("linear")
    record = sealed.directories.record("linear").read_bytes()
    token = sealed.refresh_token("linear")
    use_keys(sealed, make_key(sealed.home, "another"))
    files = {path.name: path.read_bytes() for path in sealed.directories.grants.iterdir()}
    if cut_off:
        done = sealed("run-once", "--json", "linear")
        assert (done.code, done.outcome) == (2, "invalid_grant_file")
        assert {path.name: path.read_bytes() for path in sealed.directories.grants.iterdir()} == files
    if command == "remove":
        assert sealed("remove", "linear").code == 0
        removed = sealed.record("linear")
        assert isinstance(removed, Tombstone)
        assert (removed.generation, removed.spent[: len(before.spent)]) == (before.generation, before.spent)
        assert sealed("run-once", "--json", "linear").code == 2
        return
    done = sealed.import_grant("linear", server.grant("linear"), "--replace")
    assert "cannot be opened" in done.stderr
    after = sealed.grant("linear")
    assert after.generation == before.generation + 1
    assert set(before.spent) <= set(after.spent)
    # The old refresh token may be spent by the attempt that was cut off.
    assert (Secret(token).fingerprint() in after.spent) is (cut_off == "rename")
    aside = list(sealed.directories.grants.glob("linear.json.aside.*"))
    assert [path.read_bytes() for path in aside] == [record]
    assert sealed("run-once", "--json", "--force", "linear").outcome == "rotated"
    assert [name for name in sealed.leftovers() if ".aside." not in name] == []


def test_a_login_needs_no_key_that_is_lost(refresher: Command) -> None:
    """If it failed, nobody could log in again under the name of a grant whose key is lost."""
    with MCPLogin() as mcp:
        use_keys(refresher, make_key(refresher.home, "first"))
        done = refresher("login", "linear", mcp.url, "--param", "prompt=login", environment=as_browser("person"))
        assert done.code == 0, done.stderr
        before = refresher.grant("linear")
        use_keys(refresher, refresher.home / "nowhere")
        done = refresher("login", "linear", environment=as_browser("person"))
        assert done.code == 2, "a person logs in, and then nothing can be stored"
        assert mcp.seen()["authorized"] == 1
        use_keys(refresher, make_key(refresher.home, "second"))
        done = refresher("login", "linear", environment=as_browser("person"))
        assert done.code == 0, done.stderr
        assert "its sealed record is kept" in done.stderr
        after = refresher.grant("linear")
        assert (after.generation, after.server_url) == (before.generation + 1, before.server_url)
        assert refresher("run-once", "--force", "--json").outcome == "rotated"
        assert mcp.seen()["reused"] == 0
