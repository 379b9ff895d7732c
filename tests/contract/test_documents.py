"""Every file, heading, command and test that a document names exists."""

import re
import shlex
import subprocess
from collections import Counter
from pathlib import Path

import click
import pytest

from refresher.cli.connect import CLIENTS
from refresher.cli.main import cli
from tests.support.documents import DOCUMENTS, ROOT, anchors, code, links

ARCHITECTURE = "refresher/ARCHITECTURE.md"

SNIPPETS = {
    "README.md": {
        "": 3,
        "sh": 2,
        "python": 1,
        "profile": 1,
    },  # test_readme.py, test_readme_commands.py; "": a picture, two lines, a crontab
    "refresher/README.md": {
        "json": 4,
        "toml": 4,
        "bash": 1,
        "sh": 2,
    },  # test_reference.py, test_login_assertion.py, test_stdio.py, test_store_commands.py
    "refresher/ARCHITECTURE.md": {"": 3},  # pictures
    "shim/README.md": {"": 1, "python": 7, "json": 1, "bash": 2},  # test_shim_readme.py
    "deploy/README.md": {
        "": 4,
        "sh": 15,
        "yaml": 1,
        "toml": 2,
    },  # test_cron.py, test_systemd.py, test_systemd_user.py, test_notify_hook.py, test_prometheus.py; "": by hand
    "deploy/kubernetes/README.md": {"sh": 7, "yaml": 4},  # test_kubernetes_readme.py, test_kubernetes.py
    "deploy/agents/README.md": dict(Counter(client.language for client in CLIENTS)),  # test_connect.py, tests/agents
    ".github/CONTRIBUTING.md": {"sh": 1},  # tests/run itself
    ".github/SECURITY.md": {},
}
"""How many code blocks of each language a document has, and which test runs them."""

CONTEXT = click.Context(cli, info_name="refresher")
GLOBAL = {opt for parameter in cli.params for opt in parameter.opts} | {"-h", "--help"}

_TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
FILES = _TRACKED or [
    str(path.relative_to(ROOT))
    for top in ("refresher", "shim", "tests", "deploy", ".github")
    for path in (ROOT / top).rglob("*")
    if path.is_file()
]
TEXTS = {
    name: (ROOT / name).read_text()
    for name in FILES
    if (ROOT / name).is_file() and Path(name).suffix in {".md", ".py", ".yaml", ".toml", ".service", ".timer", ".conf", ".plist", ""}
    and not name.startswith("tests/fixtures/")
}  # fmt: skip
HERE = "tests/contract/test_documents.py"


def places(document: str, path: str) -> list[Path]:
    """Return the possible targets of a path in a document; the architecture page omits ``refresher/``."""
    found = [ROOT / path, (ROOT / document).parent / path]
    if document == ARCHITECTURE:
        found.append(ROOT / "refresher" / path)
    if document == "deploy/kubernetes/README.md":  # its first step copies the directory of this name
        found.append(ROOT / "deploy/kubernetes" / path.removeprefix("refresher/"))
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_link_has_a_target(document: str) -> None:
    """If it failed, a reader would follow a link to a page or a heading that does not exist."""
    for link in links(document):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = ((ROOT / document).parent / path).resolve() if path else ROOT / document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(str(target.relative_to(ROOT))), link


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document: str) -> None:
    """If it failed, a reader would look for a file that was moved."""
    named = re.compile(
        r"(?:refresher|shim|tests|deploy|\.github)/[a-z_][\w./-]*|[\w.-]+(?:/[\w.-]+)+\.(?:py|md|yaml|toml|txt)",
        re.ASCII,
    )
    for span in code(document):
        if span.startswith("kubectl "):
            continue  # objects such as deploy/agent, which test_kubernetes_readme.py checks
        for match in named.finditer(span):
            if re.search(r"[\w$~/{}.:@-]$", span[: match.start()]):
                continue  # the end of a longer path or URL of another machine
            assert any(place.exists() for place in places(document, match[0].rstrip("."))), match[0]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_that_are_named_exist(document: str) -> None:
    """If it failed, a reader would type a command or an option that refresher does not know."""
    for span in code(document):
        # The rest is matched by a lookahead: a namespace of that name may precede the command.
        for match in re.finditer(
            r"(?:^|[\s'(/])refresher ((?:--?[a-z][\w-]*(?: [A-Z]+)? )*)([a-z][a-z-]*)(?=([^;|&')]*))", span
        ):
            before, name, rest = match.groups()
            if name not in cli.list_commands(CONTEXT):
                assert not span.startswith("refresher "), span
                continue
            command = cli.get_command(CONTEXT, name)
            assert command is not None
            commands = [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
            known = GLOBAL | {opt for each in commands for parameter in each.params for opt in parameter.opts}
            words = shlex.split(f"{before} {rest.replace(chr(34), '')}", comments=True)
            assert [word for word in words if re.fullmatch(r"--[a-z][\w-]*", word) and word not in known] == [], span


@pytest.mark.parametrize("document", DOCUMENTS)
def test_options_of_the_tests_that_are_named_exist(document: str) -> None:
    """If it failed, a contributor would type an option that tests/run does not know."""
    runner = (ROOT / "tests/run").read_text()
    for span in code(document):
        for rest in re.findall(r"tests/run((?: [^;|&]*)?)", span):
            flags = re.findall(r"(?<= )--[a-z-]+", rest)
            assert [flag for flag in flags if flag not in runner] == [], span


@pytest.mark.parametrize("document", DOCUMENTS)
def test_tests_that_are_named_exist(document: str) -> None:
    """If it failed, a reader would not find the test that checks a claim."""
    tests = "\n".join(text for name, text in TEXTS.items() if name.startswith("tests/"))
    for span in code(document):
        for name in re.findall(r"\btest_\w+\b(?!\.py)", span):
            assert f"def {name}(" in tests or f"class {name}(" in tests, name


def test_every_snippet_is_run_by_a_test() -> None:
    """If it failed, a document could contain a snippet that no test runs."""
    found = {}
    for document, text in DOCUMENTS.items():
        languages = re.findall(r"^ *```(\w*)\n.*?^ *```$", text, re.MULTILINE | re.DOTALL)
        found[document] = {language: languages.count(language) for language in languages}
    assert found == SNIPPETS


def test_invariants_that_are_cited_are_those_of_the_page() -> None:
    """If it failed, a reader of the code would not find what a comment cites."""
    headings = re.findall(r"^### (I\d)$", DOCUMENTS[ARCHITECTURE], re.MULTILINE)
    assert headings == [f"I{number}" for number in range(1, 10)]
    cited = {(name, which) for name, text in TEXTS.items() if name.endswith(".py") for which in re.findall(r"\bI\d+\b", text)}  # fmt: skip
    assert {which for _, which in cited} == set(headings)


def test_nothing_refers_to_a_document_that_does_not_exist() -> None:
    """If it failed, a reader of the code would be sent to a page that the repository does not contain."""
    names = {Path(name).name for name in FILES}
    for name, text in TEXTS.items():
        if name == HERE:
            continue
        for match in re.finditer(r"\b([A-Z]{4,})(?:\.md)? sections? \d|([\w.-]+\.md)\b", text):
            page = match[2] or f"{match[1]}.md"
            assert page in names, f"{name}: {match[0]}"


def test_headings_that_files_of_deploy_cite_are_in_its_page() -> None:
    """If it failed, a reader of a unit or a manifest would not find the section that it cites."""
    cited = {
        (name, words)
        for name, text in TEXTS.items()
        if name.startswith("deploy/") and not name.endswith(".md")
        for words in re.findall(r'README\.md, "([^"]+)"', text)
    }
    assert cited
    for name, words in cited:
        page = "deploy/kubernetes/README.md" if "kubernetes" in name else "deploy/README.md"
        assert words in DOCUMENTS[page], name
