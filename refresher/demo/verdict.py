"""Whether the demo went as it should, in words that a person understands."""

from textwrap import fill

import click

from refresher.demo.story import WIDEST, Story

__all__ = ["problems", "summary"]


def problems(story: Story, *, stopped: bool) -> list[str]:
    """Return what went wrong; a demo that a person has ``stopped`` need not have shown everything."""
    found = []
    if story.failed:
        found.append(f"{story.failed:,} of {_many(story.calls, 'call')} failed; the last: {story.failure}")
    if story.sessions > 1:
        found.append(f"the agent lost its session, and opened {story.sessions}")
    if story.reused:
        found.append(f"refresh tokens presented twice: {story.reused}; somebody else has used refresher's")
    found += story.troubles
    if not stopped and not found:
        found += [f"nothing was seen of {missing}" for missing in story.missing()]
    return found


def summary(story: Story, *, stopped: bool) -> str:
    """Return the last words: what happened, what went wrong, and what a person can do next."""
    found = problems(story, stopped=stopped)
    lines = [_headline(story, failed=bool(found), stopped=stopped)]
    lines += [fill(problem, WIDEST, initial_indent="  - ", subsequent_indent="    ") for problem in found]
    if story.rotations:
        lines += ["", *_rotations(story)]
    if not found and not stopped:
        lines += ["", "Now with a login of yours: 'refresher login NAME URL'."]
    return "\n".join(lines)


def _headline(story: Story, *, failed: bool, stopped: bool) -> str:
    calls = f"{_many(story.calls, 'call')} in {_many(story.sessions, 'MCP session')}"
    if failed:
        return click.style(f"The demo failed ({calls}):", fg="red", bold=True)
    if stopped:
        return click.style(f"Stopped after {story.now:.0f} s: {calls}, none failed.", bold=True)
    return click.style(f"{calls}, and not one call failed.", fg="green", bold=True)


def _rotations(story: Story) -> list[str]:
    count = story.rotations
    told = [
        (count["schedule"], "on schedule, before it ended"),
        (count["revoked"], "after it was revoked: the refused call waited for the next, and succeeded"),
        (count["late"], "after it had ended: refresher was late"),
        (count["forced"], "by 'refresher run-once --force' from another process"),
    ]
    replaced = f"was replaced {_many(count.total(), 'time')} under the agent's feet:"
    return [
        f"The access token, good for {story.life} s, {replaced}",
        *(f"  {number:>2}  {why}" for number, why in told if number),
        f"Refresh tokens presented twice: {story.reused}. MCP sessions lost: {max(story.sessions - 1, 0)}.",
    ]


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
