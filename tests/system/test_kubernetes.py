"""What deploy/kubernetes asks a cluster for: valid, unprivileged, and what the program itself expects."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest

from refresher.cli.main import cli
from refresher.cli.options import seconds
from refresher.oauth.http_client import DEADLINE
from tests.conftest import need
from tests.support import kubectl
from tests.support.manifests import DEPLOY, KUSTOMIZATIONS, Container, Manifests, rendered

KUBERNETES = ["1.29", kubernetes_validate.latest_version()]
REFRESHER, AGENTS = 10001, 10000
LOCK_WAIT, GRACE = 30.0, 25.0
HOUR = 3600.0

# What the Pod Security Standard "restricted" lets a pod mount.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


@pytest.fixture(autouse=True)
def _kubectl() -> None:
    need(kubectl.missing())


@pytest.fixture(params=KUSTOMIZATIONS)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    """Each of them in turn."""
    return rendered(request.param)


def owners(manifests: Manifests) -> list[Container]:
    """Return the containers that are refresher, and not an agent."""
    return [container for container in manifests.containers() if container.is_refresher]


def agents(manifests: Manifests) -> list[Container]:
    """Return the others, but for what only waits before them."""
    others = [container for container in manifests.containers() if not container.is_refresher]
    return [container for container in others if container.name != "wait-for-refresher"]


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_old_and_new_kubectl_render_the_same(kustomization: str) -> None:
    """If it failed, what is applied would depend on the version of somebody's kubectl."""
    old, new = (kubectl.render(DEPLOY / kustomization, version) for version in kubectl.VERSIONS)
    assert old == new


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_is_strictly_valid(manifests: Manifests, version: str) -> None:
    """If it failed, a cluster would refuse an object, or drop a field that somebody relies on."""
    for there in manifests.objects:
        kubernetes_validate.validate(there, version, strict=True)


def test_pods_satisfy_the_restricted_standard(manifests: Manifests) -> None:
    """If it failed, the namespace would not let the pod in, or refresher would run with rights that it does not need."""
    for there in manifests.objects:
        if there["kind"] == "Namespace":
            assert there["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for container in manifests.containers():
        pod, security = container.pod, container.spec["securityContext"]
        assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & set(pod)
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for volume in pod["volumes"]:
            assert set(volume) - {"name"} <= VOLUMES
        assert set(security) == {
            *("runAsUser", "runAsGroup", "allowPrivilegeEscalation", "capabilities", "readOnlyRootFilesystem")
        }, "a field that nobody has thought about"
        assert security["runAsUser"] > 0
        assert security["runAsGroup"] > 0
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["readOnlyRootFilesystem"] is True


def test_every_container_says_what_it_needs(manifests: Manifests) -> None:
    """If it failed, a busy node would starve refresher first, or kill it in the middle of an exchange."""
    for container in manifests.containers():
        asked = container.spec["resources"]
        assert {"cpu", "memory"} <= set(asked["requests"])
        assert "cpu" not in asked.get("limits", {}), "a token that waits for its turn is not saved yet"


def test_refresher_and_agents_share_a_group_and_nothing_else(manifests: Manifests) -> None:
    """If it failed, an agent could read refresh tokens, or could not read its own."""
    for container in manifests.containers():
        pod, user = container.pod["securityContext"], container.spec["securityContext"]["runAsUser"]
        assert (user == REFRESHER) == container.is_refresher
        assert container.spec["securityContext"]["runAsGroup"] == user, "a group that others have as well"
        assert AGENTS in (pod.get("fsGroup"), *pod.get("supplementalGroups", ()))
        if "fsGroup" in pod:
            # Else each start would give the group a right to write each record, which refresher refuses.
            assert pod["fsGroupChangePolicy"] == "OnRootMismatch"
        if container.is_refresher:
            assert manifests.environment(container).get("REFRESHER_TOKENS_GROUP") == str(AGENTS)


def test_agents_mount_tokens_to_read_demands_to_write_and_nothing_else_of_refreshers(manifests: Manifests) -> None:
    """If it failed, an agent could read or replace what is refresher's, or would never see a new token."""
    for container in agents(manifests):
        mounts = {mount["name"]: mount for mount in container.spec["volumeMounts"]}
        assert set(mounts) == {"code", "tokens", "demands"}
        assert mounts["tokens"]["readOnly"] is True
        assert "subPath" not in mounts["tokens"], "what is renamed into it later would not be seen"
        given = manifests.environment(container)
        owner = rendered("sidecar").environment(rendered("sidecar").container("refresher"))
        assert given["REFRESHER_TOKENS_DIR"] == owner["REFRESHER_TOKENS_DIR"]
        assert Path(given["REFRESHER_TOKENS_DIR"]).is_relative_to(mounts["tokens"]["mountPath"])
        # Refresher's own directory alone: a process that can write above it could put another in its place.
        assert given["REFRESHER_DEMANDS_DIR"] == mounts["demands"]["mountPath"]
        assert mounts["demands"]["subPath"] == Path(owner["REFRESHER_DEMANDS_DIR"]).name


def test_refresher_makes_each_of_its_directories_below_a_volume(manifests: Manifests) -> None:
    """If it failed, it could not make them, or refuse what the kubelet has made; or a token would be kept in a layer."""
    for container in owners(manifests):
        given = manifests.environment(container)
        places = {mount["mountPath"]: mount["name"] for mount in container.spec["volumeMounts"]}
        where = {name: _volume(container, Path(given[f"REFRESHER_{name}_DIR"]), places) for name in _DIRECTORIES}
        assert "persistentVolumeClaim" in where["STATE"]
        if container.name == "seed":
            continue  # it exchanges nothing, and so has nothing to spill
        # What a node keeps for a pod alone goes with it: that is no place for a run that is a pod of its own.
        is_job = container.pod["restartPolicy"] == "Never" if "restartPolicy" in container.pod else False
        assert (
            "persistentVolumeClaim" in where["SPILL"] if is_job else where["SPILL"] == {"name": "spill", "emptyDir": {}}
        )


_DIRECTORIES = ("STATE", "SPILL", "TOKENS", "DEMANDS")


def _volume(container: Container, directory: Path, places: dict[str, str]) -> dict[str, Any]:
    if container.name == "seed" and not any(directory.is_relative_to(place) for place in places):
        return {}
    (place,) = (place for place in places if directory.is_relative_to(place))
    assert str(directory) != place, "the top of a volume is the kubelet's"
    mount = container.mount(places[place])
    assert mount is not None
    assert not mount.get("readOnly")
    assert "subPath" not in mount
    return container.volume(places[place])


def test_agents_of_many_pods_wait_for_the_directory_that_they_mount() -> None:
    """If it failed, the kubelet would make it as root before refresher does, and no demand would ever be heard."""
    manifests = rendered("many")
    (agent,) = agents(manifests)
    (waiting,) = agent.pod["initContainers"]
    demands = manifests.environment(manifests.container("refresher"))["REFRESHER_DEMANDS_DIR"]
    assert demands in waiting["args"][0]
    assert waiting["volumeMounts"] == [{"name": "demands", "mountPath": str(Path(demands).parent), "readOnly": True}]
    compile(waiting["args"][0], "wait", "exec")


def test_hands_look_where_the_others_keep_it() -> None:
    """If it failed, a login by hand would be stored where no run ever looks."""
    hands, cron = rendered("hands"), rendered("cronjob")
    given = hands.environment(hands.container("refresher"))
    assert given.items() <= cron.environment(cron.container("refresher")).items()
    assert {there["kind"] for there in hands.objects} == {"Pod", "ConfigMap"}, "to delete it would delete the logins"


def test_tokens_of_a_sidecar_are_in_memory() -> None:
    """If it failed, access tokens would lie on the node's disk."""
    for name in ("tokens", "demands"):
        assert rendered("sidecar").container("refresher").volume(name)["emptyDir"]["medium"] == "Memory"


def test_settings_and_commands_are_the_programs_own(manifests: Manifests) -> None:
    """If it failed, a variable would be ignored in silence, or a container would end with 'no such option'."""
    known = set(_variables(cli))
    for container in manifests.containers():
        assert {name for name in manifests.environment(container) if name.startswith("REFRESHER_")} <= known
        for command in _commands(container):
            context = click.Context(cli, info_name="refresher")
            name, found, rest = cli.resolve_command(context, list(command))
            assert found is not None, f"there is no command {name}"
            found.make_context(name, rest, parent=context, obj=None)


def _variables(command: click.Command) -> Iterator[str]:
    names = [*cli.list_commands(click.Context(cli))] if command is cli else []
    for parameter in command.params:
        if isinstance(parameter.envvar, str):
            yield parameter.envvar
    for name in names:
        found = cli.get_command(click.Context(cli), name)
        assert found is not None
        yield from _variables(found)


def _commands(container: Container) -> Iterator[list[str]]:
    if "command" not in container.spec and "args" in container.spec:
        yield container.spec["args"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if probe in container.spec:
            program, *rest = container.spec[probe]["exec"]["command"]
            assert program == "refresher"
            yield rest


@pytest.mark.parametrize("kustomization", ["sidecar", "many"])
def test_no_probe_and_no_stop_cuts_off_what_holds_a_token(kustomization: str) -> None:
    """If it failed, the kubelet could kill refresher between the server's answer and the disk: a grant in doubt, or lost."""
    container = rendered(kustomization).container("refresher")
    live, ready, start = (container.spec[f"{probe}Probe"] for probe in ("liveness", "readiness", "startup"))
    assert "--live" in live["exec"]["command"]
    assert "--live" in start["exec"]["command"]
    assert "--live" not in ready["exec"]["command"]
    assert live["periodSeconds"] * live["failureThreshold"] > 2 * (DEADLINE + LOCK_WAIT)
    assert live["terminationGracePeriodSeconds"] > 2 * (DEADLINE + LOCK_WAIT)
    # The command itself gives the daemon 5 s, and a node that is starved needs its time to start one.
    assert all(probe["timeoutSeconds"] >= 15 for probe in (live, ready, start))
    assert start["periodSeconds"] * start["failureThreshold"] >= 120
    assert seconds(container.spec["args"][-1]) == GRACE
    assert container.pod["terminationGracePeriodSeconds"] > GRACE + 10


def test_a_sidecar_is_there_before_its_agent_and_goes_after_it() -> None:
    """If it failed, an agent would start without tokens, or refresher would be killed while the agent takes its time."""
    manifests = rendered("sidecar")
    container = manifests.container("refresher")
    names = [there["name"] for there in container.pod["initContainers"]]
    assert names == ["seed", "refresher"], "what is imported after the start is no seed"
    assert container.spec["restartPolicy"] == "Always"
    assert manifests.of("Deployment")["spec"]["replicas"] == 1
    assert manifests.of("Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    assert container.pod["terminationGracePeriodSeconds"] >= 3 * GRACE


def test_there_is_one_owner(manifests: Manifests) -> None:
    """If it failed, two refreshers would spend one refresh token, and the server would revoke the login."""
    claim = rendered("sidecar").of("PersistentVolumeClaim", "refresher-grants")
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    for there in manifests.objects:
        pods = [pod for pod in manifests.pods() if there.get("spec", {}).get("template", {}).get("spec") is pod]
        if any(_holds_grants(pod) for pod in pods):
            assert (there["spec"]["replicas"], there["spec"]["strategy"]) == (1, {"type": "Recreate"})


def _holds_grants(pod: dict[str, Any]) -> bool:
    claims = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]]
    return "refresher-grants" in claims


def test_a_run_of_cron_never_meets_another_and_looks_beyond_the_next() -> None:
    """If it failed, runs would pile up, one that saves a token would be killed, or a token would end between two runs."""
    manifests = rendered("cronjob")
    cron = manifests.of("CronJob")["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    minutes = re.fullmatch(r"\*/(\d+) \* \* \* \*", cron["schedule"])
    assert minutes is not None
    horizon = seconds(manifests.container("refresher").spec["args"][-1])
    assert int(minutes[1]) * 60 + 30 <= horizon <= HOUR / 4
    assert cron["jobTemplate"]["spec"]["backoffLimit"] == 0
    assert "activeDeadlineSeconds" not in cron["jobTemplate"]["spec"]
    assert cron["startingDeadlineSeconds"] < int(minutes[1]) * 60
    assert manifests.container("refresher").pod["terminationGracePeriodSeconds"] > DEADLINE + 10


def test_a_stale_secret_is_offered_and_never_needed(manifests: Manifests) -> None:
    """If it failed, a pod would not start any more once somebody has deleted what must be deleted."""
    for container in manifests.containers():
        if container.name == "seed":
            mount = container.mount("seed")
            assert mount is not None
            assert mount["readOnly"] is True
            assert container.volume("seed")["secret"]["optional"] is True
            assert container.spec["args"] == ["import", "--from", mount["mountPath"], "--if-absent"]
        else:
            assert container.mount("seed") is None, "the refresh token would be where it is not needed"


def test_the_same_refresher_is_in_all_of_them() -> None:
    """If it failed, a mended probe, mount or right of one would be missing in the others."""
    seeds = [_alike(rendered(kustomization).container("seed")) for kustomization in ("sidecar", "cronjob", "many")]
    runs = [_alike(rendered(kustomization).container("refresher")) for kustomization in ("sidecar", "many")]
    for one, other in (*pairwise(seeds), *pairwise(runs)):
        assert one == other


def _alike(container: Container) -> dict[str, Any]:
    # How large it gets depends on how much it serves; and what is a sidecar's alone.
    return {key: value for key, value in container.spec.items() if key not in ("resources", "restartPolicy")}
