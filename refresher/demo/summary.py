"""The summary of a demo: what happened, what failed, and what to do next."""

from textwrap import fill

import click

from refresher.demo.timeline import WIDEST, Timeline

__all__ = ["problems", "summarize"]


def problems(timeline: Timeline, *, stopped: bool) -> list[str]:
    """Return what failed; a demo that the person ``stopped`` need not have shown everything."""
    found = []
    if timeline.failed:
        found.append(f"{timeline.failed:,} of {_many(timeline.calls, 'call')} failed; the last: {timeline.failure}")
    if timeline.sessions > 1:
        found.append(f"the agent lost its session and opened {timeline.sessions}")
    if timeline.reused:
        found.append(f"refresh tokens sent twice: {timeline.reused}; another program has used refresher's token")
    found += timeline.failures
    if not stopped and not found:
        found += [f"{missing} did not happen" for missing in timeline.missing()]
    return found


def summarize(timeline: Timeline, *, stopped: bool) -> str:
    """Return the text at the end of the demo."""
    found = problems(timeline, stopped=stopped)
    lines = [_headline(timeline, failed=bool(found), stopped=stopped)]
    lines += [fill(problem, WIDEST, initial_indent="  - ", subsequent_indent="    ") for problem in found]
    if timeline.rotations:
        lines += ["", *_rotations(timeline)]
    if not found and not stopped:
        lines += ["", "Next, log in with your own account: 'refresher login NAME URL'."]
    return "\n".join(lines)


def _headline(timeline: Timeline, *, failed: bool, stopped: bool) -> str:
    calls = f"{_many(timeline.calls, 'call')} in {_many(timeline.sessions, 'MCP session')}"
    if failed:
        return click.style(f"The demo failed ({calls}):", fg="red", bold=True)
    if stopped:
        return click.style(f"Stopped after {timeline.now:.0f} s: {calls}, none failed.", bold=True)
    return click.style(f"{calls}, and not one call failed.", fg="green", bold=True)


def _rotations(timeline: Timeline) -> list[str]:
    count = timeline.rotations
    told = [
        (count["schedule"], "on schedule, before it expired"),
        (count["revoked"], "after it was revoked: the refused call waited for it, and succeeded"),
        (count["late"], "after it had expired: refresher was late"),
        (count["forced"], "by 'refresher run-once --force' from another process"),
    ]
    replaced = f"was replaced {_many(count.total(), 'time')} while the agent used it:"
    return [
        f"The access token lives {timeline.life} s. It {replaced}",
        *(f"  {number:>2}  {why}" for number, why in told if number),
        f"Refresh tokens sent twice: {timeline.reused}. MCP sessions lost: {max(timeline.sessions - 1, 0)}.",
    ]


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
