"""Programs that a scripted model drives, with the lines that ``refresher connect`` prints for them."""

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.conftest import need
from tests.support.command import Command, Done
from tests.support.program_stage import Stage, missing, staged
from tests.support.scripted_model import Call, ScriptedModel


def _claude_code(stage: Stage, model: ScriptedModel, snippet: str) -> Done:
    servers = stage.work / ".mcp.json"
    servers.write_text(snippet)
    return stage.run(
        *("claude", "--print", "go", "--output-format", "json"),
        *("--mcp-config", str(servers), "--strict-mcp-config", "--allowedTools", "mcp__linear__add"),
        environment={
            "ANTHROPIC_BASE_URL": model.url,
            "ANTHROPIC_API_KEY": "dummy",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "ENABLE_TOOL_SEARCH": "false",  # else the model would search for the tool
        },
    )


def _codex(stage: Stage, model: ScriptedModel, snippet: str) -> Done:
    home = stage.home / ".codex"
    home.mkdir()
    provider = f'name = "scripted"\nbase_url = "{model.url}/v1"\nwire_api = "responses"\n'
    (home / "config.toml").write_text(
        'model = "scripted"\nmodel_provider = "scripted"\ncheck_for_update_on_startup = false\n'
        f"[analytics]\nenabled = false\n[model_providers.scripted]\n{provider}{snippet}"
    )
    options = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "--json")
    return stage.run("codex", "exec", *options, "go", environment={"CODEX_HOME": str(home)})


def _opencode(stage: Stage, model: ScriptedModel, snippet: str) -> Done:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{model.url}/v1", "apiKey": "dummy"},
        "models": {"scripted": {"tool_call": True}},
    }
    names = {"model": "scripted/scripted", "small_model": "scripted/scripted", "provider": {"scripted": provider}}
    quiet = {"autoupdate": False, "share": "disabled"}
    (stage.work / "opencode.json").write_text(json.dumps(json.loads(snippet) | names | quiet))
    switches = ("AUTOUPDATE", "MODELS_FETCH", "DEFAULT_PLUGINS", "LSP_DOWNLOAD")
    return stage.run("opencode", "run", "go", environment={f"OPENCODE_DISABLE_{each}": "1" for each in switches})


def _gemini(stage: Stage, model: ScriptedModel, snippet: str) -> Done:
    home = stage.home / ".gemini"
    home.mkdir()
    quiet = {
        "general": {"enableAutoUpdate": False, "enableAutoUpdateNotification": False},
        "privacy": {"usageStatisticsEnabled": False},
        "security": {"auth": {"selectedType": "gemini-api-key"}},
    }
    (home / "settings.json").write_text(json.dumps(json.loads(snippet) | quiet))
    return stage.run(
        *("gemini", "--prompt", "go", "--yolo", "--output-format", "json", "--model", "gemini-2.5-flash"),
        environment={
            "GEMINI_API_KEY": "dummy",
            "GOOGLE_GEMINI_BASE_URL": model.url,
            "GEMINI_CLI_TRUST_WORKSPACE": "true",
        },
    )


class Program(NamedTuple):
    """A program, and how it runs without a person."""

    key: str
    package: str
    run: Callable[[Stage, ScriptedModel, str], Done]


_HELPED = (
    Program("claude-code", "@anthropic-ai/claude-code", _claude_code),
    Program("codex", "@openai/codex", _codex),
)
_PROGRAMS = (
    *_HELPED,
    Program("opencode", "opencode-ai", _opencode),
    Program("gemini-cli", "@google/gemini-cli", _gemini),
)


_BRIDGED = Program("claude-desktop", "@anthropic-ai/claude-code", _claude_code)


def _driven(stage: Stage, program: Program, snippet: str, turns: Iterator[list[Call]]) -> list[Call]:
    """Run a program with the scripted model, and return the calls."""
    with ScriptedModel(turns) as model:
        done = program.run(stage, model, snippet)
    assert done.code == 0, done
    assert model.problems == [], done
    assert next(turns, None) is None, f"the program ended before the model did: {done}"
    return model.calls


@pytest.mark.parametrize("program", _PROGRAMS, ids=[program.key for program in _PROGRAMS])
def test_a_program_survives_rotations_and_a_revocation(refresher: Command, program: Program) -> None:
    """If it failed, the program would lose calls when a token expires or is revoked, or would log in by itself."""
    need(missing(program.package))
    with staged(refresher) as stage:
        calls = _driven(stage, program, stage.snippet(program.key), stage.turns())
        assert [call for call in calls if not call.succeeded] == []
        assert len(calls) == 9
        log = stage.oidc.log()
    assert (log["reused"], log["presented_twice"]) == (0, 0)
    assert stage.refresher.token("linear").generation == 6, "a rotation was made twice, or missed"
    assert len(log["requests"]) == 6


@pytest.mark.parametrize("program", _HELPED, ids=[program.key for program in _HELPED])
def test_a_helper_that_does_not_verify_loses_calls_at_a_revocation(refresher: Command, program: Program) -> None:
    """If it failed, --verify would no longer be needed, and the page would say what is not so."""
    need(missing(program.package))
    with staged(refresher) as stage:
        snippet = stage.snippet(program.key)
        assert " --verify" in snippet
        calls = _driven(stage, program, snippet.replace(" --verify", ""), stage.turns())
    assert all(call.succeeded for call in calls if call.a < 3000), "a rotation needs no --verify"
    assert not any(call.succeeded for call in calls if call.a == 3000)


@pytest.mark.parametrize(
    "program", [*_PROGRAMS, _BRIDGED], ids=[*(each.key for each in _PROGRAMS), "claude-code-stdio"]
)
def test_a_program_goes_on_after_a_login_that_was_needed(refresher: Command, program: Program) -> None:
    """If it failed, a person would not learn which command logs in, or would have to start the program again."""
    need(missing(program.package))
    by_stdio = program not in _HELPED
    with staged(refresher) as stage:
        before, during, after = _driven(stage, program, stage.snippet(program.key), stage.turns_around_a_login())
    assert before.succeeded
    assert not during.succeeded
    assert ("refresher login linear" in (during.result or "")) == by_stdio
    # Claude Code drops a server whose helper gave it a refused token: the page says so.
    assert after.succeeded == (program.key != "claude-code")
