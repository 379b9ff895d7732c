"""The completion of commands, options and names in a shell."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import need
from tests.support.cli import WORKING_LOGIN
from tests.support.command import Command

SOURCED = """
eval "$(refresher completion bash)"
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_refresher_completion refresher
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def test_a_real_bash_completes_commands_options_and_names(refresher: Command) -> None:
    """If it failed, Tab would complete nothing, or print an error."""
    need(None if shutil.which("bash") else "bash is not installed")
    for name in ("linear", "little", "other"):
        refresher.import_grant(name, WORKING_LOGIN | {"refresh_token": f"refresh-token-of-{name}"})
    assert refresher("remove", "other").code == 0
    elsewhere = refresher.home / "elsewhere"
    for words, expected in (
        ("refresher log", ["login", "logout"]),
        ("refresher login --no-b", ["--no-browser"]),
        ("refresher logout li", ["linear", "little"]),
        ("refresher login lin", ["linear"]),
        (f"refresher --state-dir {elsewhere} logout li", []),
    ):
        done = subprocess.run(
            ["bash", "--norc", "-c", SOURCED.format(words=words)],
            env={**refresher.environment, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
            cwd=refresher.home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        assert done.stdout.split() == expected, words
    assert not elsewhere.exists()


@pytest.mark.parametrize(("shell", "words"), [("zsh", "compdef"), ("fish", "complete --no-files --command refresher")])
def test_completion_scripts_for_other_shells(refresher: Command, shell: str, words: str) -> None:
    """If it failed, completion in another shell would not work."""
    done = refresher("completion", shell)
    assert (done.code, done.stderr) == (0, "")
    assert words in done.stdout
    assert re.search(r"_REFRESHER_COMPLETE=\w+", done.stdout)


def test_an_unknown_shell_is_one_line(refresher: Command) -> None:
    """If it failed, a wrong shell name would end in a traceback."""
    done = refresher("completion", "csh")
    assert (done.code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "'bash', 'zsh', 'fish'" in done.stderr
