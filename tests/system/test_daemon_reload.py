"""SIGHUP: the daemon reloads its configuration, and an invalid one changes nothing."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command import Command, wait_until
from tests.support.daemon import heard, published, stopped
from tests.support.oidc import OIDC
from tests.support.token_server import Gate, TokenServer
from tests.support.unreachable import LIVE

Daemon = Callable[..., subprocess.Popen[str]]


def test_sighup_reloads_the_configuration_and_an_invalid_one_changes_nothing(
    refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, a typo in the configuration would stop all rotations."""
    server = own_oidc()
    other = refresher.home / "other/tokens"
    refresher.import_grant("linear", server.mint("public"))
    config = refresher.home / ".config/refresher/config.toml"
    config.parent.mkdir(parents=True)
    process = daemon()
    wait_until(lambda: published(refresher) == 1, "the first token is there")
    config.write_text('tokens_dri = "other"\n')
    process.send_signal(signal.SIGHUP)
    log = heard(process, "cannot reload the configuration")
    (refresher.state / "demands/linear.1").touch()
    wait_until(lambda: published(refresher) == 2, "the old configuration stays in use")
    config.write_text(f'tokens_dir = "{other}"\n')
    process.send_signal(signal.SIGHUP)
    log += heard(process, "configuration reloaded")
    wait_until((other / "linear.json").exists, "the token is published in the new directory")
    text = "".join(log) + stopped(refresher, process)
    assert text.count("cannot reload the configuration") == 1
    assert "tokens_dri" in text
    assert text.count("configuration reloaded") == 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('tokens_dir = "dangling"', "dangling"),
        ('tokens_dir = "a-file"', "not a directory"),
        ('ca_file = "a\\u0000b"', "not a path"),
        ('tokens_dir = "~a\\u0000b/x"', "tokens_dir"),
        ("tokens_group = " + '"' + "9" * 5000 + '"', "tokens_group"),
        ('log_format = "json"\nca_file = "nowhere.pem"', "nowhere.pem"),
    ],
)
def test_no_invalid_configuration_ends_a_daemon(refresher: Command, daemon: Daemon, config: str, words: str) -> None:
    """If it failed, a mistake in the configuration would end the daemon at the next reload."""
    directory = refresher.home / ".config/refresher"
    directory.mkdir(parents=True)
    (directory / "dangling").symlink_to("nowhere")
    (directory / "a-file").touch()
    refresher.bring("linear", LIVE)
    process = daemon()
    heard(process, "watching 1 grant")
    (directory / "config.toml").write_text(config)
    process.send_signal(signal.SIGHUP)
    assert words in heard(process, "cannot reload the configuration")[-1]
    (refresher.state / "tokens/linear.json").unlink()
    wait_until((refresher.state / "tokens/linear.json").exists, "the old configuration stays in use")


def test_a_reload_leaks_no_threads_or_files(refresher: Command, daemon: Daemon) -> None:
    """If it failed, a daemon that is reloaded each night would run out of threads or files."""
    refresher.bring("linear", LIVE)
    process = daemon()
    heard(process, "watching 1 grant")

    def count(kind: str) -> int:
        return len(list(Path(f"/proc/{process.pid}/{kind}").iterdir()))

    before = {kind: count(kind) for kind in ("task", "fd")}
    for _ in range(20):
        process.send_signal(signal.SIGHUP)
        heard(process, "configuration reloaded")
    # A thread that is about to end, or a file that is open for a moment, is no leak: 20 reloads would leak 20.
    assert all(count(kind) < number + 10 for kind, number in before.items())


def test_waiting_jobs_follow_a_new_configuration(refresher: Command, daemon: Daemon) -> None:
    """If it failed, grants would be rotated in a directory from which they were moved, and tokens lost."""
    gate = Gate()
    with TokenServer(lambda _: 3600, hold=gate) as server:
        for number in range(20):
            refresher.bring(f"g{number}", server.grant(str(number)))
        config = refresher.home / ".config/refresher/config.toml"
        config.parent.mkdir(parents=True)
        process = daemon()
        wait_until(lambda: len(server.asked) == 8, "the limit of the server is reached")
        config.write_text(f'state_dir = "{refresher.home / "elsewhere"}"\n')
        process.send_signal(signal.SIGHUP)
        heard(process, "configuration reloaded")
        gate.opened.set()
        assert stopped(refresher, process)
        assert len(server.asked) == 8
