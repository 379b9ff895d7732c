"""The command doctor: prints what is wrong with a set-up, and the command that mends it."""

import json
import shutil
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Final

import click
import msgspec

from refresher.cli.options import Options, command, complete_name
from refresher.common.terminal import Progress, show
from refresher.doctor import examination
from refresher.doctor.finding import Finding, Gravity, Part, exit_code

__all__ = ["doctor", "print_parts"]

_TICK: Final = 0.2
_WIDEST: Final = 100
_INDENT: Final = 11
_MOST_ALIKE: Final = 10
_COLOURS: Final[dict[Gravity, str]] = {"attention": "yellow", "broken": "red", "person": "red"}


@command(
    short_help="Find what is wrong, and say how to mend it.",
    exit_codes={
        0: "nothing found",
        1: "something needs attention",
        2: "something is broken; or wrong usage, configuration or name",
        3: "a person must log in again",
    },
)
@click.argument("name", metavar="[NAME]", required=False, shell_complete=complete_name)
@click.option("--offline", is_flag=True, help="Connect to no server.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def doctor(options: Options, name: str | None, offline: bool, as_json: bool) -> int:
    """Find what is wrong with this set-up: its directories, grants, servers, keys and packages.

    For each finding, it says what is wrong, why that matters, and which command mends it. It reads only, and sends no
    token. With NAME, it looks at no other grant. It asks each authorization server once for
    its metadata, for 20 s at most.
    """
    settings = options.settings()
    parts = _with_progress(lambda step: examination.examine(settings, name, offline=offline, step=step))
    return print_parts(parts, as_json=as_json)


def print_parts(parts: Sequence[Part], *, as_json: bool) -> int:
    """Print what was checked and each finding, or JSON; return the exit code."""
    findings = examination.findings_of(parts)
    code = exit_code(findings)
    if as_json:
        show(json.dumps({"findings": [msgspec.structs.asdict(finding) for finding in findings], "exit_code": code}))
    else:
        show("\n".join((*_overview(parts), "", *_blocks(findings))))
    return code


def _with_progress(work: Callable[[Callable[[list[str]], None]], list[Part]]) -> list[Part]:
    """Return what ``work`` returns, and show meanwhile what it waits for.

    It works in a thread that nothing waits for at the end: a file system that does not answer stops neither the
    progress nor Ctrl-C.
    """
    doing: list[str] = []
    future: Future[list[Part]] = Future()

    def step(what: list[str]) -> None:
        doing[:] = what

    def run() -> None:
        try:
            future.set_result(work(step))
        except BaseException as error:  # noqa: BLE001  result() raises it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="doctor").start()
    progress = Progress()
    while not wait([future], _TICK).done:
        progress([*doing])
    return future.result()


def _overview(parts: Sequence[Part]) -> list[str]:
    """Return one line about each part."""
    width = max(len(part.title) for part in parts) + 2
    return [
        f"{part.title:{width}}{part.line}{f' ({_count(len(part.findings))})' if part.findings else ''}"
        for part in parts
    ]


def _blocks(findings: Sequence[Finding]) -> list[str]:
    """Return the lines about each finding; a command is never wrapped, so that a person can copy it."""
    if not findings:
        return ["nothing found"]
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    lines, seen = [], Counter[str]()
    for finding in findings:
        seen[finding.code] += 1
        if seen[finding.code] > _MOST_ALIKE:
            continue  # one cause can concern thousands of grants
        subject = (
            f"{finding.name}: " if finding.name is not None and not _begins_with(finding.what, finding.name) else ""
        )
        # The colour is added after the text is wrapped, because it makes a word longer than it looks.
        first, *rest = _wrapped(f"{subject}{finding.what}", width)
        word = click.style(finding.gravity.ljust(_INDENT), fg=_COLOURS[finding.gravity], bold=True)
        lines += [word + first.lstrip(), *rest, *_wrapped(f"Why: {finding.why}", width)]
        lines += [f"{' ' * _INDENT}Mend: {finding.mend}", ""]
    left = sum(count - _MOST_ALIKE for count in seen.values() if count > _MOST_ALIKE)
    more = f"; {left} more of the same kinds are in 'refresher doctor --json'" if left else ""
    return [*lines, f"{_count(len(findings))}{more}"]


def _wrapped(text: str, width: int) -> list[str]:
    indent = " " * _INDENT
    return textwrap.wrap(
        text,
        max(width, 2 * _INDENT),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _count(findings: int) -> str:
    return f"{findings} finding{'' if findings == 1 else 's'}"


def _begins_with(text: str, name: str) -> bool:
    """Whether ``text`` begins with the word ``name``."""
    return text.startswith(name) and not text[len(name) : len(name) + 1].isalnum()
