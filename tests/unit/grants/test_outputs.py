"""Outputs in the configuration, and the content of each format."""

from pathlib import Path
from typing import Any

import pytest

from refresher.common.errors import ConfigError
from refresher.config import resolve
from refresher.grants.outputs import FileOutput, Output, SecretOutput, render, was_rendered
from tests.support.published import token

FILE = 'grant = "linear"\nformat = "raw"\npath = "out/token"\n'


def outputs(tmp_path: Path, *tables: str) -> tuple[Output, ...]:
    """Return the outputs of a configuration file with these tables."""
    file = tmp_path / "config.toml"
    file.write_text("".join(f"[[outputs]]\n{table}\n" for table in tables))
    return resolve({"state_dir": str(tmp_path / "state")}, str(file)).outputs


def test_each_format_takes_its_keys_and_has_safe_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, an output would be written to another place, or with another mode, than the file says."""
    monkeypatch.setenv("HOME", "/home/somebody")
    found = outputs(
        tmp_path,
        FILE,
        'grant = "linear"\nformat = "env"\npath = "~/env"\nvariable = "LINEAR_TOKEN"\nmode = "0640"\nowner = "root"\ngroup = 7',
        'grant = "linear"\nformat = "kubernetes-secret"\nsecret = "linear"',
        'grant = "git"\nformat = "kubernetes-secret"\nsecret = "linear"\nnamespace = "agents"\nkey = "git.token"',
    )
    assert found == (
        FileOutput(grant="linear", format="raw", path=tmp_path / "out/token", mode=0o600),
        FileOutput(grant="linear", format="env", path=Path("/home/somebody/env"), mode=0o640, owner="root", group=7, variable="LINEAR_TOKEN"),
        SecretOutput(grant="linear", secret="linear", namespace=None, key="token"),
        SecretOutput(grant="git", secret="linear", namespace="agents", key="git.token"),
    )  # fmt: skip
    assert resolve({"state_dir": str(tmp_path)}, None).outputs == ()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('format = "raw"\npath = "x"', "grant must be"),
        ('grant = "../x"\nformat = "raw"\npath = "x"', "grant must be"),
        ('grant = "linear"\nformat = "yaml"\npath = "x"', "format must be one of raw, header, env, netrc, kubernetes-secret"),
        ('grant = "linear"\nformat = "raw"', "the format raw needs path"),
        ('grant = "linear"\nformat = "env"\npath = "x"', "the format env needs variable"),
        ('grant = "linear"\nformat = "env"\npath = "x"\nvariable = "A B"', "variable must be"),
        ('grant = "linear"\nformat = "netrc"\npath = "x"\nmachine = "h"\nlogin = "a\\nb"', "login must be"),
        ('grant = "linear"\nformat = "netrc"\npath = "x"\nmachine = "h h"\nlogin = "a"', "machine must be"),
        (f'{FILE}variable = "X"', "unknown key 'variable' of the format raw"),
        ('grant = "linear"\nformat = "raw"\npath = "out/"', "path must be"),
        ('grant = "linear"\nformat = "raw"\npath = "~nobody-of-this-name/x"', "path: there is no home"),
        (f"{FILE}mode = 600", "mode must be a text"),
        (f'{FILE}mode = "0700"', "mode must let"),
        (f'{FILE}mode = "0040"', "mode must let"),
        (f'{FILE}mode = "0620"', "mode must let"),
        (f'{FILE}mode = "0602"', "mode must let"),
        (f"{FILE}owner = -1", "owner must be"),
        (f"{FILE}group = 4294967295", "group must be"),
        ('grant = "linear"\nformat = "kubernetes-secret"\nsecret = "a/b"', "secret must be"),
        ('grant = "linear"\nformat = "kubernetes-secret"\nsecret = "a"\nkey = "a/b"', "key must be"),
        ('grant = "linear"\nformat = "kubernetes-secret"\nsecret = "a"\nnamespace = "A"', "namespace must be"),
    ],
)  # fmt: skip
def test_an_error_names_the_file_the_output_and_the_key(tmp_path: Path, table: str, words: str) -> None:
    """If it failed, a person would search the file for the mistake, or a token would be written to a wrong place."""
    with pytest.raises(ConfigError) as error:
        outputs(tmp_path, FILE.replace("token", "first"), table)
    assert str(error.value).startswith(f"{tmp_path}/config.toml: number 2 of [[outputs]]: ")
    assert words in str(error.value)


def test_two_outputs_never_have_one_place(tmp_path: Path) -> None:
    """If it failed, two outputs would replace each other without an end."""
    with pytest.raises(ConfigError, match=r"number 2 .*another output writes .*/out/token too"):
        outputs(tmp_path, FILE, FILE.replace("linear", "git"))
    with pytest.raises(ConfigError, match=r"number 2 .*another output writes .*/out/token too"):
        outputs(tmp_path, FILE, FILE.replace("out/token", "out/../out/token"))
    secret = 'grant = "linear"\nformat = "kubernetes-secret"\nsecret = "s"\n'
    for tables in ((secret, f'{secret}namespace = "own"'), (f'{secret}namespace = "own"', secret)):
        with pytest.raises(
            ConfigError, match=r"number 2 .*another output may write .*Secret (own/)?s too: give both a namespace"
        ):
            outputs(tmp_path, *tables)
    assert len(outputs(tmp_path, f'{secret}namespace = "a"', f'{secret}namespace = "b"', f'{secret}key = "other"')) == 3
    (tmp_path / "config.toml").write_text('outputs = ["token"]')
    with pytest.raises(ConfigError, match=r"number 1 of \[\[outputs\]\] must be a table"):
        resolve({"state_dir": str(tmp_path)}, str(tmp_path / "config.toml"))


def output(form: Any, **more: Any) -> FileOutput:
    """Return a file output."""
    return FileOutput(
        grant="linear", format=form, path=Path("/x"), variable="V", machine="git.example", login="me", **more
    )


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("raw", b"access-token-1"),
        ("header", b"Authorization: Bearer access-token-1\n"),
        ("env", b"V=access-token-1\n"),
        ("netrc", b"machine git.example login me password access-token-1\n"),
    ],
)
def test_the_content_of_a_format_is_recognized_and_its_absence_too(form: str, content: bytes) -> None:
    """If it failed, programs would read something else, or refresher would not replace what it wrote itself."""
    assert render(output(form), token(token_type="bearer")) == content
    assert render(output(form), token(access_token=None, state="removed")) is None
    assert was_rendered(content, output(form))


@pytest.mark.parametrize("text", ["a|b", "~root", "a'b", 'a"b', "a#b", "a$b", "a\\b", "a;b"])
def test_a_token_that_readers_would_read_differently_is_refused(text: str) -> None:
    """If it failed, a shell could run a part of a token, and systemd and docker would read another one."""
    for form in ("env", "netrc"):
        with pytest.raises(ValueError, match="use the format raw or header") as error:
            render(output(form), token(access_token=text))
        assert text not in str(error.value)
    assert render(output("raw"), token(access_token=text)) == text.encode()


@pytest.mark.parametrize("content", [b"two\nlines\n", b"two words", b"machine a login b password c\nmachine d login e password f\n", b"A=1\nB=2\n", b"\x7fELF"])  # fmt: skip
def test_a_file_with_other_content_is_recognized(content: bytes) -> None:
    """If it failed, a mistake in a path would destroy a file, for example a ~/.netrc with other passwords."""
    assert not was_rendered(content, output("raw"))


def test_an_output_takes_the_place_of_its_own_format_only() -> None:
    """If it failed, a password or the settings of another program would be replaced by a token."""
    forms: tuple[Any, ...] = ("raw", "header", "env", "netrc")
    for form in forms:
        content = render(output(form), token())
        assert content is not None
        assert [each for each in forms if was_rendered(content, output(each))] == [form]
    assert [each for each in forms if was_rendered(b"a-password\n", output(each))] == []


@pytest.mark.parametrize("key", ["page_token_file", "metrics_file", "gateway_keys_file", "ca_file"])
def test_an_output_in_the_place_of_a_file_that_the_configuration_names_is_refused(tmp_path: Path, key: str) -> None:
    """If it failed, a token would replace the secret of the page, or the keys of the gateway."""
    file = tmp_path / "config.toml"
    file.write_text(f'{key} = "x/../own.prom"\n[[outputs]]\ngrant = "linear"\nformat = "raw"\npath = "./own.prom"\n')
    with pytest.raises(ConfigError, match=f"an output writes {tmp_path}/own.prom, which is the {key}: give it a path"):
        resolve({"state_dir": str(tmp_path)}, str(file))
    file.write_text('[[outputs]]\ngrant = "linear"\nformat = "raw"\npath = "gateway-keys.json"\n')
    with pytest.raises(ConfigError, match="which is the gateway_keys_file"):
        resolve({"state_dir": str(tmp_path)}, str(file))


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("header", b"Authorization: Basic dXNlcjpwYXNz\n"),
        ("env", b"DATABASE_PASSWORD=secret\n"),
        ("netrc", b"machine github.com login me password secret\n"),
        ("netrc", b"machine git.example login other password secret\n"),
    ],
)
def test_a_credential_of_somebody_else_in_the_same_format_stays(form: str, content: bytes) -> None:
    """If it failed, an output at a wrong path would replace a password that a person keeps there, or delete it."""
    assert not was_rendered(content, output(form))
