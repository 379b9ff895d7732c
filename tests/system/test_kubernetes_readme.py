"""deploy/kubernetes/README.md: its commands exist, its first steps work, and the program has the messages that it explains."""

import os
import re
import shlex
import stat
import subprocess
from pathlib import Path
from typing import Final

import click
import kubernetes_validate
import pytest
import yaml

from refresher.cli.main import cli
from tests.conftest import need
from tests.support import kubectl
from tests.support.manifests import DEPLOY, KUSTOMIZATIONS, Manifests, rendered

ROOT: Final = Path(__file__).parent.parent.parent
README: Final = (DEPLOY / "README.md").read_text()
BLOCKS: Final = [
    re.sub(r"^ {0,3}", "", block, flags=re.MULTILINE)
    for block in re.findall(r"^ *```sh\n(.*?)^ *```$", README, re.DOTALL | re.MULTILINE)
]


KUBECTL: Final = [
    shlex.split(line, comments=True)[1:]
    for block in BLOCKS
    for line in block.splitlines()
    if line.startswith("kubectl ")
]
REFRESHER: Final = [words[words.index("refresher", words.index("--")) + 1 :] for words in KUBECTL if "--" in words]


def test_the_first_steps_make_manifests_that_a_cluster_accepts(tmp_path: Path) -> None:
    """If it failed, a new user could not apply the files of step two."""
    need(kubectl.missing())
    bin_, empty = tmp_path / "bin", tmp_path / "empty"
    bin_.mkdir()
    empty.mkdir()
    # A fake kubectl stands for the cluster: it keeps what would be applied, and succeeds.
    fake = bin_ / "kubectl"
    fake.write_text(f'#!/bin/sh\n[ "$1" != apply ] || {kubectl.program()} kustomize "$3" >{tmp_path}/applied\n')
    fake.chmod(stat.S_IRWXU)
    (block,) = (block for block in BLOCKS if "cat > kustomization.yaml" in block)
    environment = {"PATH": f"{bin_}:{os.environ['PATH']}", "CHECKOUT": str(ROOT)}
    subprocess.run(["bash", "-euc", block], cwd=empty, env=environment, check=True)
    applied = Manifests(list(yaml.safe_load_all((tmp_path / "applied").read_text())))
    for item in applied.objects:
        kubernetes_validate.validate(item, "1.29", strict=True)
    assert {container.spec["image"] for container in applied.containers()} == {"refresher:0.1.0"}
    given = applied.environment(applied.container("agent"))
    assert (given["GRANT"], given["MCP_URL"]) == ("linear", "https://mcp.linear.app/mcp")
    assert applied.container("seed").volume("seed")["secret"]["secretName"] == "refresher-seed"
    assert any("refresher-seed" in command for command in KUBECTL)


@pytest.mark.parametrize("command", REFRESHER, ids=" ".join)
def test_refresher_commands_exist(command: list[str]) -> None:
    """If it failed, a user would type a command or an option that refresher does not know."""
    context = click.Context(cli, info_name="refresher")
    name, found, rest = cli.resolve_command(context, command)
    assert found is not None, f"there is no command {name}"
    found.make_context(name, list(rest), parent=context, obj=None)


@pytest.mark.parametrize("command", KUBECTL, ids=" ".join)
def test_kubectl_commands_name_objects_that_exist(command: list[str]) -> None:
    """If it failed, a user would type the name of a pod, container or kustomization that does not exist."""
    need(kubectl.missing())
    all_manifests = [rendered(kustomization) for kustomization in KUSTOMIZATIONS]
    items = [item for manifests in all_manifests for item in manifests.objects]
    names = {f"{item['kind'].lower()}/{item['metadata']['name']}" for item in items}
    arguments = command[: command.index("--")] if "--" in command else command
    for word in arguments:
        if re.fullmatch(r"(deploy|deployment|pod)/[a-z-]+", word):
            assert word.replace("deploy/", "deployment/") in names
    if "-c" in arguments:
        assert arguments[arguments.index("-c") + 1] in {container.name for container in all_manifests[0].containers()}
    if arguments[:2] == ["apply", "-k"] and arguments[2] != ".":
        assert Path(arguments[2]).name in KUSTOMIZATIONS
    if arguments[0] != "apply" or arguments[2] != ".":
        assert {"-n", "-k"} & set(arguments), "the namespace is not the default one"


def test_explained_messages_exist() -> None:
    """If it failed, a user would search the page for a message, and not find it."""
    table = README.partition("## Messages\n")[2]
    quoted = [
        words
        for line in table.splitlines()
        if line.startswith("| `")
        for words in re.findall(r"`([^`]+)`", line.split("|")[1])
    ]
    assert len(quoted) > 10
    sources = " ".join(path.read_text() for path in (ROOT / "refresher").rglob("*.py"))
    messages = re.sub(r'"\s*\n\s*f?"', "", re.sub(r"\{[^{}]*\}", "*", sources))
    for words in [*quoted, "the rotation was lost", "NOT SAVED YET"]:
        pattern = re.sub(r"/[a-z/]*[a-z/]", "*", words)
        assert any(form in messages for form in (words, pattern, pattern.rstrip("*"))), words
