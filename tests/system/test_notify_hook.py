"""The ready hook of deploy/hooks, run by the real command as deploy/README.md says."""

import email
import email.policy
import json
import re
import shutil
import subprocess
import tomllib
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.support.command import Command
from tests.support.listener import Listening
from tests.support.token_server import TokenServer

ROOT = Path(__file__).parents[2]
NOTIFY = ROOT / "deploy/hooks/notify"
CLEAN = "<b>bold</b> Bcc: someone@else.example $(touch pwned) `id` \"quoted\" \\ 'x' --flag ?"
HOSTILE = "<b>bold</b>\r\nBcc: someone@else.example\n$(touch pwned) `id` \"quoted\" \\ 'x' --flag\0\ud800"


def run(hook: str, *arguments: str, path: Path, detail: str = HOSTILE) -> subprocess.CompletedProcess[str]:
    """Run the hook with an event, and only the programs in ``path`` before those of the system."""
    event = {"hook": hook, "name": "linear", "detail": detail, "advice": "refresher login linear"}
    return subprocess.run(
        [str(NOTIFY), *arguments],
        input=json.dumps(event),
        capture_output=True,
        text=True,
        env={"PATH": f"{path}:/usr/local/bin:/usr/bin:/bin", "HOME": str(path), "REFRESHER_HOOK": hook},
        check=False,
    )


def recorder(directory: Path, name: str) -> Path:
    """Put a program of this name there that keeps its arguments and its input. A fake: no desktop or mail runs here."""
    program, kept = directory / name, directory / f"{name}.kept"
    program.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" >{kept}.arguments\ncat >{kept}\n')
    program.chmod(0o755)
    return kept


def test_a_notification_shows_what_happened_and_what_to_do(tmp_path: Path) -> None:
    """If it failed, a person at a desktop would not see that a login needs them, or a server could style the text."""
    kept = recorder(tmp_path, "notify-send")
    done = run("on_reauthorization_required", "desktop", path=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    arguments = Path(f"{kept}.arguments").read_text().split("\0")[:-1]
    assert arguments[:3] == ["--urgency=critical", "--app-name=refresher", "--"]
    title, text = arguments[3:]
    assert title == "refresher: linear needs a person"
    assert "&lt;b&gt;bold" in text
    assert text.endswith("\nRun: refresher login linear")


def test_a_mail_has_one_recipient_and_the_whole_text(tmp_path: Path) -> None:
    """If it failed, a person would get no mail, or a server could add recipients to it."""
    kept = recorder(tmp_path, "sendmail")
    done = run("on_failing", "mail", "me@home.example", path=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(f"{kept}.arguments").read_text() == "-i\0-t\0"
    message = email.message_from_bytes(kept.read_bytes(), policy=email.policy.default)
    assert message["To"] == "me@home.example"
    assert (message["Bcc"], message["Cc"]) == (None, None)
    assert message["Subject"].startswith("refresher: linear is failing (")
    body = message.get_content()
    assert (
        "Bcc: someone@else.example $(touch pwned) `id` \"quoted\" \\ 'x' --flag ?\nRun: refresher login linear" in body
    )


class Webhook(Listening):
    """A real server that keeps what it gets, and the arguments and environments of all processes at that time."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.processes = b""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                for name in ("cmdline", "environ"):
                    for file in Path("/proc").glob(f"[0-9]*/{name}"):
                        with suppress(OSError):
                            server.processes += file.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's signature
                return

        super().__init__(Handler)


def test_a_webhook_gets_the_text_and_its_address_stays_secret(tmp_path: Path) -> None:
    """If it failed, another user could read the address of a webhook, or a text would break the message."""
    secret = tmp_path / "webhook"
    with Webhook() as kept:
        secret.write_text(f"{kept.url}/T0/B0/a-secret-path-of-a-webhook\n")
        secret.chmod(0o600)
        done = run("on_login_ending", "webhook", str(secret), path=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        secret.chmod(0o644)
        refused = run("on_login_ending", "webhook", str(secret), path=tmp_path)
    (body,) = kept.bodies
    assert body == {"text": f"refresher: linear ends soon\n{CLEAN}\nRun: refresher login linear"}
    assert b"curl" in kept.processes
    assert b"a-secret-path-of-a-webhook" not in kept.processes
    assert refused.returncode == 1
    assert "chmod 600" in refused.stderr
    assert len(kept.bodies) == 1


def test_the_documented_configuration_sends_a_notification(refresher: Command, tmp_path: Path) -> None:
    """If it failed, a person who copies the configuration of deploy/README.md would learn of nothing."""
    text = (ROOT / "deploy/README.md").read_text()
    (section,) = re.findall(r"^## Hooks\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    (settings,) = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    (install,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    subprocess.run(["sh", "-c", install], cwd=ROOT, env=refresher.environment, check=True)
    configuration = refresher.home / ".config/refresher/config.toml"
    configuration.write_text(settings)
    assert set(tomllib.loads(settings)["hooks"]) == {"on_reauthorization_required", "on_login_ending"}
    programs = tmp_path / "programs"
    programs.mkdir()
    kept = recorder(programs, "notify-send")
    environment = {"PATH": f"{programs}:{refresher.environment['PATH']}"}
    with TokenServer(lambda _: 3600, grace=3600) as server:
        fields = server.grant("linear") | {"refresh_token": "a-refresh-token-of-nobody"}
        refresher.import_grant("linear", fields)
        done = refresher("run-once", environment=environment)
    assert done.code == 3
    assert b"refresher: linear needs a person" in Path(f"{kept}.arguments").read_bytes()
    assert shutil.which("curl"), "the webhook needs it"
