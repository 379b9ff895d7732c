"""The command: measures, shows progress on stderr, and prints the table. See ``--help``."""

import argparse
import datetime as dt
import importlib
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from tests.bench import picture, report, rows
from tests.bench.measuring import ROOT, CannotRun, Results, Run
from tests.support import oidc, warm

_SAVED: Final = ROOT / ".venv/bench"


def main() -> None:
    """Measure what the arguments say, or read it, and print it."""
    parser = _parser()
    options = parser.parse_args()
    if unknown := set(options.questions) - set(rows.questions()):
        parser.error(f"there is no question {min(unknown)!r}: {', '.join(rows.questions())}")
    if options.read:
        _show(msgspec.json.decode(Path(options.read).read_bytes(), type=Results), options.show)
        return
    with tempfile.TemporaryDirectory(prefix="refresher-bench-") as root:
        minutes = options.minutes or (0.2 if options.quick else 0.5)
        results = _measure(Path(root), options.questions or rows.questions(), quick=options.quick, minutes=minutes)
        _SAVED.mkdir(parents=True, exist_ok=True)
        (_SAVED / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(results)))
        _show(results, options.show)
        print("removing the files of the measurements", file=sys.stderr)


def _show(results: Results, form: Callable[[Results], str]) -> None:
    """Draw the curves, and print the rest."""
    if results.curves:
        _SAVED.mkdir(parents=True, exist_ok=True)
        picture.draw(results, _SAVED / "curves.png")
        print(f"the curves: {_SAVED / 'curves.png'}", file=sys.stderr)
    print(form(results), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tests/run --bench",
        description="Measures refresher and shim, each figure beside a counterpart in the same run. A goal that is missed "
        f"is marked, and is no error. The results and the picture of the curves are kept in {_SAVED}.",
    )
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"measure only: {', '.join(rows.questions())}")
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the grants and callers, in about three minutes"
    )
    parser.add_argument(
        "--minutes", type=float, default=None, help="how long run rotates without a pause (0.5; 10 for a full run)"
    )
    parser.add_argument(
        "--read", metavar="FILE", help="measure nothing: show the results of an earlier run, in any form"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", dest="show", action="store_const", const=report.as_json, default=report.as_table)
    form.add_argument(
        "--markdown", dest="show", action="store_const", const=report.as_markdown, help="the table of README.md"
    )
    return parser


def _measure(root: Path, questions: list[str], *, quick: bool, minutes: float) -> Results:
    began = time.monotonic()
    results = Results(
        machine=_machine(),
        date=dt.datetime.now().astimezone().date().isoformat(),
        load=[os.getloadavg()[0]],
        quick=quick,
    )
    run = Run(root, results, minutes=minutes)
    try:
        for question in questions:
            _ask(run, question)
    finally:
        oidc.close()
        warm.close()
    results.load.append(os.getloadavg()[0])
    results.seconds = time.monotonic() - began
    return results


def _ask(run: Run, question: str) -> None:
    """Measure the rows of a question; note why some have no figure."""
    reason = "not measured"
    try:
        importlib.import_module(f"tests.bench.{question}").measure(run)
    except CannotRun as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001  the other questions are still measured
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    for row in rows.ROWS:
        if row.question == question and row.key not in run.results.figures:
            run.results.missing[row.key] = reason


def _machine() -> str:
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()} {platform.release().partition('-')[0]}"


if __name__ == "__main__":
    main()
