"""What the doctor finds in the files that the configuration names."""

from pathlib import Path

import pytest

from refresher import config
from refresher.doctor import configuration
from refresher.doctor.finding import KINDS, Finding
from tests.support.published import Published


def found(tmp_path: Path, text: str) -> list[Finding]:
    """Return what is found with a configuration file."""
    file = tmp_path / "config.toml"
    file.write_text(text)
    return [*configuration.check(config.resolve({"state_dir": str(tmp_path / "state")}, str(file)))]


def test_a_hook_that_would_not_run_is_found_and_none_is_run(tmp_path: Path) -> None:
    """If it failed, a person who waits for a mail would not learn that the hook cannot run."""
    program, trace = tmp_path / "hook", tmp_path / "trace"
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    (finding,) = found(tmp_path, f'[hooks]\non_failing = ["{program}"]\n')
    assert (finding.code, finding.mend) == ("hook_unusable", f"chmod +x {program}")
    program.chmod(0o755)
    assert found(tmp_path, f'[hooks]\non_failing = ["{program}"]\n') == []
    assert not trace.exists()
    assert [each.code for each in found(tmp_path, '[hooks]\non_failing = ["no-such-program"]\n')] == ["hook_unusable"]


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [("x" * 32, 0o600, None), ("x" * 32, 0o644, "other users"), ("short", 0o600, "shorter"), (None, 0, "cannot read")],
)
def test_a_page_token_that_cannot_be_used_is_found(
    tmp_path: Path, text: str | None, mode: int, words: str | None
) -> None:
    """If it failed, nobody would see why the page shows nothing."""
    if text is not None:
        (tmp_path / "token").touch(mode=mode)
        (tmp_path / "token").write_text(text)
    findings = found(tmp_path, 'page_token_file = "token"\n')
    assert [finding.code for finding in findings] == ([] if words is None else ["page_token_unusable"])
    assert all(words is not None and words in finding.what for finding in findings)


def test_an_output_that_is_not_up_to_date_or_for_no_grant_is_found_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, nobody would see why a program has an old token, or none; or doctor would write a token."""
    Published(tmp_path / "state").put()
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    (tmp_path / "outputs").mkdir()
    text = "".join(
        f'[[outputs]]\ngrant = "{name}"\nformat = "raw"\npath = "{path}"\n'
        for name, path in (("linear", "outputs/a"), ("linear", "nowhere/b"), ("other", "outputs/c"))
    )
    findings = found(tmp_path, f'{text}[[outputs]]\ngrant = "linear"\nformat = "kubernetes-secret"\nsecret = "s"\n')
    assert [(each.code, each.name, each.mend) for each in findings] == [
        ("output_unknown", "other", KINDS["output_unknown"].mend),
        ("output_unusable", "linear", "refresher run-once"),
        ("output_unusable", "linear", "create the directory"),
    ], "offline, no cluster is asked"
    assert [*(tmp_path / "outputs").iterdir()] == []
    settings = config.resolve({"state_dir": str(tmp_path / "state")}, str(tmp_path / "config.toml"))
    (*_, secret) = configuration.check(settings, offline=False)
    assert (secret.code, secret.mend) == ("output_unusable", "use it in a pod only")
