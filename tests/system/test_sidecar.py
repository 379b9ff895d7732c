"""The sidecar of deploy/kubernetes without a cluster: its manifest, users and volumes, with a real agent."""

import json
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from refresher.grants.encoding import decode
from refresher.grants.record import Grant
from shim._token import TokenFile, parse
from tests.conftest import need
from tests.support import isolated, kubectl
from tests.support.command import wait_until
from tests.support.manifests import rendered
from tests.support.mcp_server import MCPServerProcess
from tests.support.oidc import OIDC
from tests.support.person import Person
from tests.support.pod import Pod, Running
from tests.support.vault import Vault

Start = Callable[..., OIDC]

LIFE = 6
"""Seconds until an access token expires."""


class Sidecar:
    """Pods that run one after the other with the same claims."""

    def __init__(self, root: Path, vault: Vault, server: str, address: str, kustomization: str = "sidecar") -> None:
        self.vault = vault
        self.manifests = rendered(kustomization)
        self._root = root
        (self._spec,) = self.manifests.pods()
        self._environment = {"REFRESHER_LISTEN": address, "MCP_URL": server, "EACH": "0.05"}
        self.state = root / "claims/refresher-grants/state"

    def pod(self, **grants: dict[str, Any]) -> Pod:
        """Return a pod with a Secret of these grants."""
        for fields in grants.values():
            self.vault.learn(fields["refresh_token"], fields.get("access_token"))
        secret = {f"{name}.json": json.dumps(fields).encode() for name, fields in grants.items()}
        made = Pod(self._root, self.manifests, self._spec, secret)
        made.environment |= self._environment
        return made

    def begin(self, pod: Pod) -> Running:
        """Start the seed and then refresher, as the kubelet does, and wait for the startup probe."""
        seed = pod.start("seed")
        assert seed.end() == 0, seed.says()
        return self.resume(pod)

    def resume(self, pod: Pod) -> Running:
        """Start refresher alone, as after a crash."""
        refresher = pod.start("refresher")
        wait_until(lambda: self.probe(pod, refresher, "startupProbe") or refresher.ended, "it has started")
        assert not refresher.ended, refresher.says()
        return refresher

    def probe(self, pod: Pod, refresher: Running, which: str) -> bool:
        """Run a probe, as the kubelet does."""
        command = self.manifests.container("refresher").spec[which]["exec"]["command"]
        return pod.says(refresher, "refresher", *command).returncode == 0

    def token(self, pod: Pod) -> TokenFile | None:
        """Return the token that agents see."""
        try:
            found = parse((pod.volume("tokens") / "refresher/linear.json").read_bytes())
        except FileNotFoundError:
            return None
        self.vault.learn_from(self.state)
        return found

    def generation(self, pod: Pod) -> int:
        """Return the generation that agents see, -1 where there is none."""
        token = self.token(pod)
        return -1 if token is None else token.generation

    def grant(self) -> Grant:
        """Return the private record."""
        record = decode((self.state / "grants/linear.json").read_bytes(), "linear").record
        assert isinstance(record, Grant)
        return record


@pytest.fixture
def address() -> Iterator[str]:
    """A free address. A socket that is bound and does not listen keeps the system from using its port otherwise."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def oidc(own_oidc: Start) -> OIDC:
    """An authorization server whose tokens expire soon."""
    return own_oidc(accessTokenTtl=LIFE)


@pytest.fixture
def server(oidc: OIDC) -> Iterator[MCPServerProcess]:
    with MCPServerProcess(oidc) as running:
        yield running


@pytest.fixture
def sidecar(tmp_path: Path, vault: Vault, server: MCPServerProcess, address: str) -> Sidecar:
    need(isolated.missing() or kubectl.missing())
    return Sidecar(tmp_path / "pod", vault, server.url, address)


def mint(oidc: OIDC, server: MCPServerProcess) -> dict[str, Any]:
    """Return the content of a Secret: a grant for the server."""
    return oidc.mint(resource=server.url) | {"server_url": server.url, "resource": server.url}


def answers(agent: Running) -> list[str]:
    """Return the results of the agent's calls, and check that none failed."""
    lines = [line for line in agent.says().splitlines() if line != "stopped"]
    assert all(line.endswith(" tools") for line in lines), lines[-3:]
    return lines


def check_calls_after_rotations(sidecar: Sidecar, pod: Pod, agent: Running, generations: int) -> None:
    """Wait for rotations, and check that the agent's calls succeed after them."""
    beyond = sidecar.generation(pod) + generations
    wait_until(lambda: sidecar.generation(pod) >= beyond, f"{generations} rotations")
    before = len(answers(agent))
    wait_until(lambda: len(answers(agent)) > before + 3 or agent.ended, "the agent calls")
    assert not agent.ended, agent.says()


def test_the_agent_keeps_calling_through_rotations_and_a_crash_of_the_sidecar(
    sidecar: Sidecar, oidc: OIDC, server: MCPServerProcess
) -> None:
    """If it failed, agents in a cluster would need a restart for each token, or after each crash of their sidecar."""
    with sidecar.pod(linear=mint(oidc, server)) as pod:
        refresher = sidecar.begin(pod)
        agent = pod.start("agent")
        check_calls_after_rotations(sidecar, pod, agent, 2)
        assert sidecar.probe(pod, refresher, "readinessProbe")
        assert sidecar.probe(pod, refresher, "livenessProbe")

        refresher.kill()
        refresher = sidecar.resume(pod)
        check_calls_after_rotations(sidecar, pod, agent, 2)

        # The kubelet stops a sidecar once the others have ended.
        agent.signal(signal.SIGTERM)
        assert agent.end() == 0, agent.says()
        refresher.signal(signal.SIGTERM)
        assert refresher.end() == 0, refresher.says()
        answers(agent)
    assert oidc.log()["reused"] == 0, "a refresh token was sent twice"
    assert server.log()["sessions"] <= 1, "the agent's MCP session was lost"


def test_the_agent_keeps_calling_after_a_crash_of_the_sidecar_during_an_exchange(
    own_oidc: Start, tmp_path: Path, vault: Vault, address: str
) -> None:
    """If it failed, a node that runs out of memory during an exchange would end a login."""
    need(isolated.missing() or kubectl.missing())
    oidc = own_oidc()
    with MCPServerProcess(oidc) as server:
        sidecar = Sidecar(tmp_path / "pod", vault, server.url, address)
        with sidecar.pod(linear=mint(oidc, server)) as pod:
            refresher = sidecar.begin(pod)
            agent = pod.start("agent")
            check_calls_after_rotations(sidecar, pod, agent, 0)
            before = len(oidc.requests())
            oidc.script(hold=True, drop=True)
            demand = f"/run/demands/refresher/linear.{sidecar.generation(pod)}"
            assert pod.says(agent, "agent", "touch", demand).returncode == 0
            wait_until(lambda: len(oidc.requests()) > before, "an exchange is under way")
            refresher.kill()
            oidc.release()
            refresher = sidecar.resume(pod)
            wait_until(lambda: sidecar.grant().doubt is not None, "the grant is in doubt")
            check_calls_after_rotations(sidecar, pod, agent, 1)
            assert "in_doubt" in refresher.says()
        assert oidc.log()["reused"] == 0, "a refresh token was sent twice"


def test_a_new_pod_uses_the_grant_on_the_volume_and_not_the_secret(
    sidecar: Sidecar, oidc: OIDC, server: MCPServerProcess
) -> None:
    """If it failed, each new pod would send the refresh token of the Secret, which is spent, and end the login."""
    seed = mint(oidc, server)
    with sidecar.pod(linear=seed) as pod:
        refresher = sidecar.begin(pod)
        wait_until(lambda: sidecar.generation(pod) >= 2, "it rotates")
        refresher.kill()
    before = sidecar.grant()
    with sidecar.pod(linear=seed) as pod:
        assert sidecar.token(pod) is None, "the token was not only in memory"
        again = pod.start("seed")
        assert (again.end(), again.says()) == (0, "linear exists already; it is kept\n")
        assert sidecar.grant() == before
        refresher = sidecar.resume(pod)
        wait_until(lambda: sidecar.generation(pod) > before.generation, "rotations continue")
        refresher.kill()
    with sidecar.pod() as pod:
        sidecar.begin(pod).kill()
    assert oidc.log()["reused"] == 0, "a refresh token was sent twice"


# Calls of an agent, and the errors of the system.
ATTEMPTS = [
    ("os.listdir('/var/lib/refresher')", "ENOENT"),
    ("os.listdir('/var/spool/refresher')", "ENOENT"),
    ("os.listdir('/run/seed')", "ENOENT"),
    ("open('/run/tokens/refresher/linear.json', 'w')", "EROFS"),
    ("os.unlink('/run/tokens/refresher/linear.json')", "EROFS"),
    ("os.symlink('/', '/run/tokens/mine')", "EROFS"),
    ("os.rename('/run/demands/refresher', '/run/demands/mine')", "EROFS"),
    ("os.rmdir('/run/demands/refresher')", "EROFS"),
    ("os.chmod('/run/demands/refresher', 0o777)", "EPERM"),
    ("open('/anything', 'w')", "EROFS"),
    ("os.kill(1, 0)", None),
    ("open('/run/demands/refresher/notion.7', 'x').close()", None),
    ("open('/run/tokens/refresher/linear.json').read()", None),
]


def test_an_agent_can_read_tokens_make_demands_and_nothing_else(
    sidecar: Sidecar, oidc: OIDC, server: MCPServerProcess
) -> None:
    """If it failed, a compromised agent could read refresh tokens, or publish tokens to other agents."""
    with sidecar.pod(linear=mint(oidc, server)) as pod:
        sidecar.begin(pod)
        agent = pod.start("agent")
        check_calls_after_rotations(sidecar, pod, agent, 0)
        code = "\n".join(
            f"try: {call}\nexcept OSError as error: print(errno.errorcode[error.errno])\nelse: print(None)"
            for call, _ in ATTEMPTS
        )
        done = pod.says(agent, "agent", "python", "-c", f"import errno, os\n{code}")
        assert done.stdout.splitlines() == [str(expected) for _, expected in ATTEMPTS], done.stderr
        rights = dict(line.split(":\t") for line in Path(f"/proc/{agent.first}/status").read_text().splitlines()[:60])
        assert (rights["CapEff"], rights["CapBnd"], rights["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")


def test_a_demand_of_the_agents_user_rotates_the_grant(
    own_oidc: Start, tmp_path: Path, vault: Vault, address: str
) -> None:
    """If it failed, an agent with a revoked token would fail until the next scheduled rotation."""
    need(isolated.missing() or kubectl.missing())
    oidc = own_oidc()
    with MCPServerProcess(oidc) as server:
        sidecar = Sidecar(tmp_path / "pod", vault, server.url, address)
        with sidecar.pod(linear=mint(oidc, server)) as pod:
            sidecar.begin(pod)
            agent = pod.start("agent")
            check_calls_after_rotations(sidecar, pod, agent, 0)
            wait_until(lambda: len(answers(agent)) > 3, "the agent calls")
            token = sidecar.token(pod)
            assert token is not None
            assert token.access_token is not None
            oidc.end(token.access_token)
            check_calls_after_rotations(sidecar, pod, agent, 1)


def widen(volume: Path) -> None:
    """Change the modes as the kubelet does for a restored volume, or another fsGroup."""
    subprocess.run(["chmod", "-R", "g+rw", str(volume)], check=True)
    subprocess.run(["find", str(volume), "-type", "d", "-exec", "chmod", "g+xs", "{}", "+"], check=True)


def test_a_volume_that_the_group_can_read_is_refused_until_a_person_repairs_it(
    sidecar: Sidecar, oidc: OIDC, server: MCPServerProcess, tmp_path: Path, vault: Vault, address: str
) -> None:
    """If it failed, a restored volume would be used although others may have read it, or could not be repaired."""
    with sidecar.pod(linear=mint(oidc, server)) as pod:
        refresher = sidecar.begin(pod)
        wait_until(lambda: sidecar.generation(pod) >= 1, "it rotates")
        refresher.kill()
    before = sidecar.grant()
    widen(tmp_path / "pod/claims/refresher-grants")
    with sidecar.pod() as pod:
        refused = pod.start("refresher")
        assert refused.end() == 2
        assert (
            "others can read /var/lib/refresher/state/grants, which holds refresh tokens: run 'chmod 700' on it"
            in refused.says()
        )
    assert sidecar.grant() == before
    hands = Sidecar(tmp_path / "pod", vault, server.url, address, "hands")
    with hands.pod() as pod:
        manual = pod.start("refresher")
        wait_until(lambda: "here" in manual.says(), "it waits for the signal")
        repaired = pod.says(manual, "refresher", "python", "/hands/mend.py")
        assert repaired.returncode == 0, repaired.stderr
        assert "linear.json: this user's alone" in repaired.stdout
        manual.signal(signal.SIGTERM)
        assert manual.end() == 0, manual.says()
    with sidecar.pod() as pod:
        sidecar.begin(pod)
        wait_until(lambda: sidecar.generation(pod) > before.generation, "rotations continue")


def test_a_person_logs_in_through_the_running_container(sidecar: Sidecar, oidc: OIDC, server: MCPServerProcess) -> None:
    """If it failed, a login in a cluster would need a Secret that a person writes."""
    with sidecar.pod() as pod:
        refresher = sidecar.begin(pod)
        agent = pod.start("agent")
        wait_until(lambda: "linear: " in agent.says(), "the agent reports that it has no token")
        login = pod.inside(
            refresher,
            "refresher",
            *("refresher", "login", "linear", server.url, "--no-browser"),
            stdin=subprocess.PIPE,
        )
        assert login.stderr is not None
        address = next(line.strip() for line in login.stderr if line.startswith("  http"))
        assert Person().open(address)
        stdout, stderr = login.communicate(timeout=90)
        assert login.returncode == 0, stderr
        assert not sidecar.vault.leaks_in(stdout + stderr)
        wait_until(lambda: agent.says().endswith(" tools\n"), "the agent's calls succeed")


def test_a_cron_job_and_a_deployment_can_use_the_same_volumes(
    own_oidc: Start, tmp_path: Path, vault: Vault, address: str
) -> None:
    """If it failed, a change from the one to the other would need new logins."""
    need(isolated.missing() or kubectl.missing())
    oidc = own_oidc(accessTokenTtl=300)  # due only for a run with a horizon of six minutes
    with MCPServerProcess(oidc) as server:
        _change_from_cron_job_to_deployment(oidc, server, tmp_path, vault, address)


def _change_from_cron_job_to_deployment(
    oidc: OIDC, server: MCPServerProcess, tmp_path: Path, vault: Vault, address: str
) -> None:
    manifests = {kustomization: rendered(kustomization) for kustomization in ("cronjob", "many")}
    secret = {"linear.json": json.dumps(mint(oidc, server)).encode()}
    (cron,) = manifests["cronjob"].pods()

    def run() -> int:
        with Pod(tmp_path / "pod", manifests["cronjob"], cron, secret) as pod:
            for name in ("seed", "refresher"):
                done = pod.start(name)
                assert done.end() == 0, done.says()
            return parse((pod.volume("tokens") / "refresher/linear.json").read_bytes()).generation

    assert run() == 1
    wait_until(lambda: run() == 2, "the next run rotates")
    _run_deployment(tmp_path, manifests["many"], server, address)
    assert oidc.log()["reused"] == 0
    vault.learn_from(tmp_path / "pod/claims/refresher-grants/state")
    shutil.rmtree(tmp_path / "pod/claims/refresher-tokens")  # it holds tokens under a name that the vault does not know


def _run_deployment(tmp_path: Path, manifests: Any, server: MCPServerProcess, address: str) -> None:
    agents, owner = sorted(manifests.pods(), key=lambda pod: "initContainers" in pod)
    with Pod(tmp_path / "pod", manifests, owner) as refreshers:
        refreshers.environment["REFRESHER_LISTEN"] = address
        refresher = refreshers.start("refresher")
        wait_until(
            lambda: refreshers.says(refresher, "refresher", "refresher", "health").returncode == 0, "it is ready"
        )
        claims = tmp_path / "agents"
        claims.mkdir()
        (claims / "claims").symlink_to(tmp_path / "pod/claims")
        with Pod(claims, manifests, agents) as others:
            others.environment |= {"MCP_URL": server.url, "EACH": "0.05"}
            agent = others.start("agent")
            wait_until(lambda: len(answers(agent)) > 3, "the agent calls")
