"""Directories that coincide, that others can write, or that a link of another user leads to: refused, nothing changed."""

import grp
import os
import pwd
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from refresher.common.errors import DirectoryError, StorageError
from refresher.storage import write_access
from refresher.storage.directories import Directories
from refresher.storage.publishing import Publisher
from refresher.storage.startup_checks import find_risks
from tests.conftest import need
from tests.support.cli import GRANT, one_line
from tests.support.command import Command, Done, wait_until
from tests.support.daemon import heard, running
from tests.support.fake_state import put
from tests.support.parts import mounted, no_mounts
from tests.support.samples import grant
from tests.support.token_server import TokenServer
from tests.support.vault import Vault

AGENT, AGENTS = 12345, 12346

ONE_DIRECTORY = [
    {"tokens": "state/grants"},
    {"tokens": "state"},
    {"tokens": "spill"},
    {"demands": "state/grants"},
    {"demands": "state/tokens"},
    {"demands": "state"},
    {"demands": "spill"},
    {"spill": "state/grants"},
    {"spill": "state"},
]


@contextmanager
def acting_as(user: int, group: int) -> Iterator[None]:
    """Do something in this process with the rights of a user, who is in one group."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(group)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def as_agent(*command: str) -> None:
    """Run a command as a user of the group of agents."""
    rights = (f"--reuid={AGENT}", f"--regid={AGENTS}", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all")
    subprocess.run(["setpriv", *rights, *command], check=True, cwd="/")


def everything(root: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Return mode, owner, group and content of everything below ``root``, and of ``root``."""
    found = {}
    for path in (root, *sorted(root.rglob("*"))):
        status = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(status.st_mode) and path.suffix != ".lock" else b""
        found[str(path)] = (status.st_mode, status.st_uid, status.st_gid, data)
    return found


def refusal(done: Done) -> str:
    """Check that a command was refused, and return why; a warning that agents cannot enter a directory may precede."""
    lines = [line for line in done.stderr.splitlines(keepends=True) if " cannot enter " not in line]
    return one_line(done._replace(stderr="".join(lines)))


def directories(root: Path, *, group: int | None = None, **other: Path) -> Directories:
    """Return directories below ``root``, some of them elsewhere; nothing is created."""
    state = root / "state"
    usual: dict[str, Any] = {
        "state": state,
        "tokens": state / "tokens",
        "demands": state / "demands",
        "spill": root / "spill",
    }
    return Directories(**usual | other, group=group)


@pytest.fixture
def reachable(vault: Vault) -> Iterator[Command]:
    """The command in a home that other users can enter."""
    need(no_mounts())
    with tempfile.TemporaryDirectory() as made:
        home = Path(made)
        home.chmod(0o711)
        refresher = Command(home, vault)
        refresher.state = home / "state"
        refresher.tokens = refresher.state / "tokens"
        refresher.environment |= {
            "REFRESHER_STATE_DIR": str(refresher.state),
            "REFRESHER_SPILL_DIR": str(home / "spill"),
        }
        yield refresher


# --- one directory for two purposes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("same", ONE_DIRECTORY, ids=str)
@pytest.mark.parametrize("way", ["path", "link", "mount"])
def test_one_directory_for_two_purposes_is_refused_before_anything_changes(
    refresher: Command, same: dict[str, str], way: str
) -> None:
    """If it failed, a token file would replace the record of a grant, or agents would get the grants."""
    need(no_mounts())
    refresher.state = refresher.home / "state"
    spill = refresher.home / "spill"
    spill.mkdir(mode=0o700)
    refresher.environment |= {"REFRESHER_STATE_DIR": str(refresher.state), "REFRESHER_SPILL_DIR": str(spill)}
    ((role, target),) = same.items()
    place = refresher.home / target
    with TokenServer(lambda _: 3600) as server:
        refresher.bring("linear", server.grant("client"))
        if way != "path":
            place = refresher.home / "another name"
        if way == "link":
            place.symlink_to(refresher.home / target)
        if way == "mount":
            place.mkdir()
            subprocess.run(["mount", "--bind", str(refresher.home / target), str(place)], check=True)
        try:
            path = str(refresher.write_import("notion", GRANT))
            before = everything(refresher.home)
            refresher.environment[f"REFRESHER_{role.upper()}_DIR"] = str(place)
            for arguments in (
                ("run-once",),
                ("run-once", "--force"),
                ("run",),
                ("import", "notion", "--from", path),
                ("remove", "linear"),
            ):
                line = refusal(refresher("--tokens-group", str(AGENTS), *arguments))
                assert "are one directory" in line
                assert everything(refresher.home) == before, arguments
        finally:
            if way == "mount":
                subprocess.run(["umount", str(place)], check=True)
    assert not server.asked


@pytest.mark.parametrize("same", [*ONE_DIRECTORY, {"tokens": "x", "demands": "x"}, {"tokens": "state/../x/../state"}])
def test_one_directory_that_does_not_exist_yet_is_refused_before_it_is_made(
    tmp_path: Path, same: dict[str, str]
) -> None:
    """If it failed, the first import would make one directory for grants and for agents."""
    made = directories(tmp_path, group=AGENTS, **{role: tmp_path / place for role, place in same.items()})
    with pytest.raises(DirectoryError, match="are one directory"):
        made.prepare()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("role", ["tokens", "demands"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_directory_of_agents_inside_the_grants_is_refused(tmp_path: Path, role: str, exists: bool) -> None:
    """If it failed, refresher would advise to open the grants to agents, or no agent would ever get a token."""
    inside = tmp_path / "state/grants/inside"
    (tmp_path / "link").symlink_to(inside)
    if exists:
        directories(tmp_path).prepare()
        inside.mkdir()
    before = sorted(tmp_path.rglob("*"))
    for path in (inside, tmp_path / "link"):
        with pytest.raises(DirectoryError, match=f"is inside the grants directory.*--{role}-dir"):
            directories(tmp_path, group=AGENTS, **{role: path}).prepare()
    assert sorted(tmp_path.rglob("*")) == before
    directories(tmp_path, group=None, **{role: tmp_path / "state/grants/../beside"}).prepare()


def test_no_demand_is_looked_for_in_the_directory_of_grants(tmp_path: Path) -> None:
    """If it failed, files of grants would be removed as demands after demands/ was replaced by a link."""
    made = directories(tmp_path)
    made.prepare()
    made.demands.rmdir()
    made.demands.symlink_to(made.grants)
    with pytest.raises(DirectoryError, match="are one directory"), made.opened_demands():
        pass


@pytest.mark.parametrize("other", ["this refresher", "another refresher"])
def test_publishing_refuses_a_directory_that_holds_grants(tmp_path: Path, other: str) -> None:
    """If it failed, a directory that was replaced after the checks would lose a refresh token."""
    made = directories(tmp_path)
    made.prepare()
    target = made if other == "this refresher" else directories(tmp_path / "other")
    target.prepare()
    target.import_lock.touch(0o600)
    stored = put(target.record("linear"), grant())
    made.tokens.rmdir()
    made.tokens.symlink_to(target.grants)
    before = everything(target.state)
    with pytest.raises(StorageError, match=r"are one directory|holds grants"):
        Publisher(made).publish(stored.record or grant(), again=True)
    assert everything(target.state) == before


# --- a group that can write ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False], ids=["tokens are shared", "no group"])
@pytest.mark.parametrize("name", ["state", "state/tokens"])
def test_a_directory_that_a_group_can_write_is_refused(refresher: Command, name: str, shared: bool) -> None:
    """If it failed, a member of the group could put a link to the grants in place of tokens/."""
    need(no_mounts())
    refresher.state = refresher.home / "state"
    refresher.environment["REFRESHER_STATE_DIR"] = str(refresher.state)
    if shared:
        refresher.environment["REFRESHER_TOKENS_GROUP"] = str(AGENTS)
    with TokenServer(lambda _: 3600) as server:
        refresher.bring("linear", server.grant("client"))
        place = refresher.home / name
        os.chown(place, -1, AGENTS)
        place.chmod(0o771)
        path = str(refresher.write_import("notion", GRANT))
        before = everything(refresher.home)
        for arguments in (("run-once",), ("run",), ("import", "notion", "--from", path), ("remove", "linear")):
            line = refusal(refresher(*arguments))
            assert f"group {AGENTS} can write to {place}" in line
            assert "chmod g-w" in line
            assert everything(refresher.home) == before, arguments
    assert not server.asked


def test_an_agent_that_replaces_tokens_by_a_link_to_the_grants_harms_no_grant(reachable: Command) -> None:
    """If it failed, a running daemon would publish over the records, and every refresh token would be lost."""
    with TokenServer(lambda _: 3600) as server:
        reachable.bring("linear", server.grant("client"))
        with running(reachable) as daemon:
            wait_until(lambda: reachable.grant("linear").generation == 1, "the daemon rotates")
            wait_until((reachable.tokens / "linear.json").exists, "the daemon publishes")
            before = reachable.refresh_token("linear")
            # A person opens the state directory while the daemon runs.
            os.chown(reachable.state, -1, AGENTS)
            reachable.state.chmod(0o771)
            heard(daemon, "can write to")  # the next problem is reported too
            as_agent("mv", str(reachable.tokens), str(reachable.state / "away"))
            as_agent("ln", "-s", str(reachable.state / "grants"), str(reachable.tokens))
            lines = heard(daemon, f"link of user {AGENT}")
            assert str(reachable.tokens) in lines[-1]
            daemon.terminate()
            reachable.finish(daemon)
        assert f"a link of user {AGENT}" in one_line(reachable("run-once", "--force"))
        assert reachable.refresh_token("linear") == before
        # Without the link, and closed again, everything goes on.
        reachable.tokens.unlink()
        reachable.state.chmod(0o711)
        assert reachable("run-once", "--force").code == 0
        assert reachable.grant("linear").generation == 2
    assert server.reused == 0


def test_a_home_of_umask_002_and_a_private_group_still_works() -> None:
    """If it failed, refresher would refuse the home directories of many distributions, or warn about them for ever."""
    need(no_mounts())
    games = pwd.getpwnam("games")  # a user with a group of its own
    user, group = games.pw_uid, grp.getgrnam("games").gr_gid
    with tempfile.TemporaryDirectory() as made:
        home = Path(made)
        os.chown(home, user, group)
        home.chmod(0o775)
        with acting_as(user, group):
            (home / "local").mkdir()
            (home / "local").chmod(0o775)
            there = directories(home / "local")
            there.prepare()
            for path in (there.state, there.tokens):
                path.chmod(0o770)
            there.prepare()
            assert there.listing().names == ()
            assert find_risks(there, "") == []


@pytest.mark.parametrize(
    ("user", "group", "mode", "expected"),
    [
        (0, 0, 0o770, None),
        (5, 60, 0o770, None),
        (5, 60, 0o772, "anybody"),
        (5, 60, 0o1777, "anybody"),
        (5, 100, 0o770, "group 100"),
        (5, 100, 0o750, None),
        (0, 60, 0o770, "group 60"),
        # The primary group of several users.
        (65534, 65534, 0o770, "group 65534"),
        # Users and groups without a name.
        (AGENT, AGENT, 0o770, f"group {AGENT}"),
        (0, AGENTS, 0o770, f"group {AGENTS}"),
    ],
)
def test_only_the_private_group_of_the_owner_may_write(
    tmp_path: Path, user: int, group: int, mode: int, expected: str | None
) -> None:
    """If it failed, a group with other members would count as private, or a private one as open to others."""
    need(no_mounts())
    os.chown(tmp_path, user, group)
    tmp_path.chmod(mode)
    assert write_access.writers(tmp_path.stat()) == expected
    tmp_path.chmod(0o700)


def test_a_private_group_with_another_member_is_a_group_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a user who was added to the group of the owner could replace what agents trust."""
    need(no_mounts())
    there = pwd.getpwnam("bin")  # in no other test, because what is known of a group is remembered
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group(("bin", "x", gid, ["bin", "agent"])))
    os.chown(tmp_path, there.pw_uid, there.pw_gid)
    tmp_path.chmod(0o770)
    assert write_access.writers(tmp_path.stat()) == f"group {there.pw_gid}"
    tmp_path.chmod(0o700)


# --- the directories above -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [False, True], ids=["above the state directory", "above tokens/"])
@pytest.mark.parametrize(("group", "mode"), [(AGENTS, 0o771), (0, 0o777)], ids=["the group", "anybody"])
def test_agents_that_could_rename_in_a_directory_above_are_refused(
    tmp_path: Path, apart: bool, group: int, mode: int
) -> None:
    """If it failed, an agent could replace the whole state directory, or give other agents its own tokens."""
    need(no_mounts())
    above = tmp_path / "above"
    made = directories(tmp_path, group=AGENTS, **{"tokens" if apart else "state": above / "inner" / "place"})
    if not apart:
        made = directories(above / "inner", group=AGENTS)
    above.mkdir()
    os.chown(above, -1, group)
    above.chmod(mode)
    before = everything(tmp_path)
    with pytest.raises(DirectoryError, match=rf"can write in {above} and replace {above}/inner: run 'chmod"):
        made.prepare()
    assert everything(tmp_path) == before
    # In a sticky directory, nobody can rename what belongs to others.
    above.chmod(0o1777)
    made.prepare()
    made.listing()
    assert find_risks(made, "") == []


def test_a_directory_above_that_may_be_no_problem_causes_one_warning(tmp_path: Path) -> None:
    """If it failed, pods with the usual volumes would not start, or nobody would know who can replace their files."""
    need(no_mounts())
    with mounted(tmp_path / "volume", "size=1m"):
        os.chown(tmp_path / "volume", -1, AGENTS)
        (tmp_path / "volume").chmod(0o2777)
        made = directories(tmp_path / "volume", group=AGENTS)
        made.prepare()
        made.prepare()
        (risk,) = find_risks(made, "")
        assert f"anybody can write in {tmp_path / 'volume'}" in risk
    # A part of the same file system, as a volume on the disk of a node.
    for name in ("disk", "bound"):
        (tmp_path / name).mkdir()
    (tmp_path / "disk").chmod(0o2777)
    subprocess.run(["mount", "--bind", str(tmp_path / "disk"), str(tmp_path / "bound")], check=True)
    try:
        directories(tmp_path / "bound", group=AGENTS).prepare()
    finally:
        subprocess.run(["umount", str(tmp_path / "bound")], check=True)
    # Without a group of agents, nobody knows whether the members are agents.
    other = tmp_path / "other"
    other.mkdir()
    os.chown(other, -1, 100)
    other.chmod(0o775)
    made = directories(other)
    made.prepare()
    (risk,) = find_risks(made, "")
    assert risk.startswith(f"group 100 can write in {other} and replace {other / 'state'}")


# --- links of others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [AGENTS, None], ids=["a group", "no group"])
@pytest.mark.parametrize("where", ["state", "state/tokens", "state/grants", "above"])
def test_a_link_of_another_user_is_refused(tmp_path: Path, where: str, group: int | None) -> None:
    """If it failed, another user could choose where refresh tokens and access tokens are written."""
    need(no_mounts())
    home = tmp_path / "home"
    home.mkdir()
    root = home / "above" if where == "above" else home
    link = home / where
    link.parent.mkdir(exist_ok=True)
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    link.symlink_to(target)
    os.chown(link, AGENT, AGENT, follow_symlinks=False)
    made = directories(root, group=group)
    before = everything(tmp_path)
    with pytest.raises(DirectoryError, match=rf"{link} is a link of user {AGENT}"):
        made.prepare()
    assert everything(tmp_path) == before
    if where != "state/grants":
        # A link of this user is followed.
        os.chown(link, os.geteuid(), -1, follow_symlinks=False)
        made.prepare()


@pytest.mark.parametrize("target", ["grants", "", "tokens"])
def test_a_link_of_another_user_in_place_of_demands_is_not_followed_without_a_group(
    tmp_path: Path, target: str
) -> None:
    """If it failed, refresher would remove files that another user chose; or that user could stop every rotation."""
    need(no_mounts())
    made = directories(tmp_path)
    made.prepare()
    made.demands.rmdir()
    made.demands.symlink_to(made.state / target)
    os.chown(made.demands, AGENT, AGENT, follow_symlinks=False)
    before = everything(tmp_path)
    assert f"is a link of user {AGENT}" in (made.prepare() or "")
    assert made.listing().names == ()
    assert everything(tmp_path) == before


def test_a_link_of_another_user_in_place_of_the_spill_directory_stops_nothing(tmp_path: Path) -> None:
    """If it failed, any user of a machine could stop refresher with a link in /var/tmp."""
    need(no_mounts())
    made = directories(tmp_path)
    made.prepare()
    made.spill.symlink_to(made.grants)
    os.chown(made.spill, AGENT, AGENT, follow_symlinks=False)
    assert made.prepare() is None
    assert any("cannot store a token" in risk for risk in find_risks(made, ""))


# --- who can read, and whose files -----------------------------------------------------------------------------------


def test_a_tokens_directory_with_the_mode_of_a_shared_one_is_reported(refresher: Command) -> None:
    """If it failed, a directory made by hand would give every access token to a group, and nobody would know."""
    need(no_mounts())
    refresher.tokens.mkdir(parents=True, mode=0o750)
    refresher.state.chmod(0o700)
    os.chown(refresher.tokens, -1, 100)
    done = refresher.import_grant("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600})
    (line,) = [line for line in done.stderr.splitlines() if "warning" in line]
    assert f"group 100 can read the access tokens in {refresher.tokens}" in line
    assert "chmod 700" in line
    refresher.tokens.chmod(0o700)
    assert refresher.import_grant("notion", GRANT | {"refresh_token": "another-refresh-token"}).stderr == ""


@pytest.mark.parametrize("exists", ["state", "state/grants", ""], ids=["no grants yet", "grants", "nothing yet"])
def test_an_import_of_root_into_the_directory_of_another_user_is_refused(refresher: Command, exists: str) -> None:
    """If it failed, the user would have files of root, which refresher then refuses."""
    need(no_mounts())
    home = refresher.home / "person"
    (home / exists).mkdir(parents=True, mode=0o700)
    for place in (home, *home.rglob("*")):
        os.chown(place, AGENT, AGENT)
        place.chmod(0o700)
    path = str(refresher.write_import("linear", GRANT))
    before = everything(home)
    line = one_line(refresher("--state-dir", str(home / "state"), "import", "linear", "--from", path))
    assert f"belongs to user {AGENT}" in line
    assert everything(home) == before
