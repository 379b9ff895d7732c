"""The manifests of deploy/kubernetes are valid and unprivileged, and match the program."""

import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from refresher import config
from refresher.cli.main import cli
from refresher.cli.options import seconds
from refresher.grants.outputs import SecretOutput
from refresher.oauth.http_client import DEADLINE
from refresher.observers.kubernetes_secret import ACCOUNT
from tests.conftest import need
from tests.support import kubectl
from tests.support.manifests import DEPLOY, KUSTOMIZATIONS, Container, Manifests, rendered

README = (DEPLOY / "README.md").read_text()
KUBERNETES = ["1.29", kubernetes_validate.latest_version()]
REFRESHER, AGENTS = 10001, 10000
LOCK_WAIT, GRACE = 30.0, 25.0
HOUR = 3600.0

# The volumes that the Pod Security Standard "restricted" allows.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


@pytest.fixture(autouse=True)
def _kubectl() -> None:
    need(kubectl.missing())


@pytest.fixture(params=KUSTOMIZATIONS)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    """The manifests of each kustomization."""
    return rendered(request.param)


def owners(manifests: Manifests) -> list[Container]:
    """Return the containers that run refresher."""
    return [container for container in manifests.containers() if container.is_refresher]


def agents(manifests: Manifests) -> list[Container]:
    """Return the containers of agents, without those that only wait for refresher."""
    others = [container for container in manifests.containers() if not container.is_refresher]
    return [container for container in others if container.name != "wait-for-refresher"]


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_old_and_new_kubectl_render_the_same(kustomization: str) -> None:
    """If it failed, the applied objects would depend on the version of kubectl."""
    old, new = (kubectl.render(DEPLOY / kustomization, version) for version in kubectl.VERSIONS)
    assert old == new


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_is_strictly_valid(manifests: Manifests, version: str) -> None:
    """If it failed, a cluster would refuse an object, or drop a field."""
    for item in manifests.objects:
        kubernetes_validate.validate(item, version, strict=True)


def test_pods_satisfy_the_restricted_standard(manifests: Manifests) -> None:
    """If it failed, the namespace would refuse the pod, or refresher would have rights that it does not need."""
    for item in manifests.objects:
        if item["kind"] == "Namespace":
            assert item["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
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
        }, "this test does not check a field"
        assert security["runAsUser"] > 0
        assert security["runAsGroup"] > 0
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["readOnlyRootFilesystem"] is True


def test_every_container_requests_what_it_needs_and_has_no_cpu_limit(manifests: Manifests) -> None:
    """If it failed, a busy node would starve refresher first, kill it in an exchange, or fill its own disk."""
    for container in manifests.containers():
        resources = container.spec["resources"]
        assert {"cpu", "memory", "ephemeral-storage"} == set(resources["requests"])
        assert {"memory", "ephemeral-storage"} == set(resources["limits"]), "a throttled refresher saves a token late"


def test_every_temporary_volume_has_a_limit_below_that_of_its_pod(manifests: Manifests) -> None:
    """If it failed, a volume could fill the disk or the memory of a node, or a full one would end the pod by surprise."""
    for pod in manifests.pods():
        running = [*pod["containers"], *(each for each in pod.get("initContainers", ()) if "restartPolicy" in each)]
        limits = [each["resources"]["limits"]["ephemeral-storage"] for each in running]
        for volume in pod["volumes"]:
            if (empty := volume.get("emptyDir")) is not None:
                assert empty.get("medium") == "Memory" or _mebibytes(empty["sizeLimit"]) < min(map(_mebibytes, limits))
                assert _mebibytes(empty["sizeLimit"]) > 0


def _mebibytes(quantity: str) -> int:
    return int(quantity.removesuffix("Mi"))


DNS = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
HTTPS = {"port": 443, "protocol": "TCP"}


def test_pods_with_refresher_alone_connect_only_to_dns_and_servers(manifests: Manifests) -> None:
    """If it failed, a stranger in the cluster could connect to refresher, or refresher to other pods."""
    policies = [there["spec"] for there in manifests.objects if there["kind"] == "NetworkPolicy"]
    for there in manifests.objects:
        spec = there.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template", there)
        if there["kind"] not in ("CronJob", "Deployment") or template["metadata"]["labels"]["app"] == "agent":
            continue
        (policy,) = policies
        (selected,) = policy["podSelector"]["matchExpressions"]
        assert template["metadata"]["labels"]["app"] in selected["values"]
        assert (policy["policyTypes"], policy["ingress"]) == (["Ingress", "Egress"], [])
        assert policy["egress"] == [{"ports": [*DNS, HTTPS]}]


def test_the_pod_for_manual_work_has_the_policy_of_the_others() -> None:
    """If it failed, the pod in which a person logs in would accept connections from the cluster."""
    label = rendered("hands").of("Pod")["metadata"]["labels"]["app"]
    (selected,) = rendered("many").of("NetworkPolicy")["spec"]["podSelector"]["matchExpressions"]
    assert label in selected["values"]


def test_the_document_lists_each_patch_of_the_network_policy() -> None:
    """If it failed, the snippet of the document would name a patch that does not exist, or hide one."""
    named = re.findall(r"^  - refresher/(network/\w+)  ", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(str(there.relative_to(DEPLOY)) for there in (DEPLOY / "network").iterdir())


@pytest.mark.parametrize("version", kubectl.VERSIONS)
@pytest.mark.parametrize(
    ("component", "kustomization"),
    [("metrics", "many"), ("ports", "many"), ("ports", "cronjob"), ("sidecar", "sidecar")],
)
def test_each_patch_of_the_network_policy_applies(
    tmp_path: Path, component: str, kustomization: str, version: str
) -> None:
    """If it failed, a person could not open a port without writing a policy."""
    shutil.copytree(DEPLOY, tmp_path / "refresher")
    (tmp_path / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: refresher\n"
        f"resources: [refresher/{kustomization}]\ncomponents: [refresher/network/{component}]\n"
    )
    manifests = Manifests(list(yaml.safe_load_all(kubectl.render(tmp_path, version))))
    policy = manifests.of("NetworkPolicy")["spec"]
    for item in manifests.objects:
        kubernetes_validate.validate(item, version, strict=True)
    ports = policy["egress"][0]["ports"]
    assert ports[:3] == [*DNS, HTTPS]
    if component == "ports":
        assert [each["port"] for each in ports[3:]] == [8443, 3128]
    elif component == "metrics":
        (ingress,) = policy["ingress"]
        listen = manifests.environment(manifests.container("refresher"))["REFRESHER_LISTEN"]
        assert listen == f"0.0.0.0:{ingress['ports'][0]['port']}"
        assert ingress["from"] == [
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
        ]
    else:
        assert (
            policy["podSelector"]["matchLabels"]
            == manifests.of("Deployment", "agent")["spec"]["selector"]["matchLabels"]
        )


# The fields of a PodMonitor (monitoring.coreos.com/v1) that are used here, by the documentation of the Prometheus Operator.
# kubernetes-validate knows no custom resources.
POD_MONITOR = {"selector": dict, "podMetricsEndpoints": list}
ENDPOINT = {"port": str, "path": str, "interval": str}


@pytest.mark.parametrize("version", kubectl.VERSIONS)
def test_the_pod_monitor_of_the_document_selects_the_port_of_refresher(tmp_path: Path, version: str) -> None:
    """If it failed, Prometheus would find no pod, another port, or a closed one, and nobody would get an alert."""
    shutil.copytree(DEPLOY, tmp_path / "refresher")
    (snippet,) = re.findall(
        r"^```yaml\n(components:\n  - refresher/monitoring\n.*?)^```$", README, re.DOTALL | re.MULTILINE
    )
    (tmp_path / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: refresher\n"
        f"resources: [refresher/many]\n{snippet}"
    )
    manifests = Manifests(list(yaml.safe_load_all(kubectl.render(tmp_path, version))))
    monitor = manifests.of("PodMonitor")
    for item in manifests.objects:
        if item is not monitor:
            kubernetes_validate.validate(item, version, strict=True)
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["metadata"] == {"name": "refresher", "namespace": "refresher", "labels": {"release": "prometheus"}}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for fields, known in ((monitor["spec"], POD_MONITOR), (endpoint, ENDPOINT)):
        assert {name: type(value) for name, value in fields.items()} == known
    selected = monitor["spec"]["selector"]["matchLabels"]
    (pod,) = (
        there["spec"]["template"]
        for there in manifests.objects
        if there["kind"] == "Deployment" and selected.items() <= there["spec"]["template"]["metadata"]["labels"].items()
    )
    (port,) = (
        port for each in pod["spec"]["containers"] for port in each.get("ports", ()) if port["name"] == endpoint["port"]
    )
    listen = manifests.environment(manifests.container("refresher"))["REFRESHER_LISTEN"]
    (ingress,) = manifests.of("NetworkPolicy")["spec"]["ingress"]
    assert listen == f"0.0.0.0:{port['containerPort']}"
    assert ingress["ports"] == [{"protocol": "TCP", "port": port["containerPort"]}]


@pytest.mark.parametrize("version", kubectl.VERSIONS)
def test_refresher_may_write_the_secrets_of_its_outputs_and_no_other(tmp_path: Path, version: str) -> None:
    """If it failed, an agent would get no Secret, or refresher could read the Secrets of the namespace."""
    shutil.copytree(DEPLOY, tmp_path / "refresher")
    (snippet,) = re.findall(r"^```yaml\n(components:\n  - refresher/outputs\n)```$", README, re.MULTILINE)
    (tmp_path / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: agents\n"
        f"resources: [refresher/many]\n{snippet}"
    )
    manifests = Manifests(list(yaml.safe_load_all(kubectl.render(tmp_path, version))))
    for item in manifests.objects:
        for known in KUBERNETES:
            kubernetes_validate.validate(item, known, strict=True)
    (tmp_path / "config.toml").write_text(manifests.of("ConfigMap", "refresher-outputs")["data"]["config.toml"])
    outputs = config.resolve({"state_dir": str(tmp_path)}, str(tmp_path / "config.toml")).outputs
    (rule,) = manifests.of("Role")["rules"]
    names = [output.secret for output in outputs if isinstance(output, SecretOutput)]
    assert rule == {"apiGroups": [""], "resources": ["secrets"], "resourceNames": names, "verbs": ["create", "patch"]}
    binding, account = manifests.of("RoleBinding"), manifests.of("ServiceAccount")["metadata"]
    assert binding["roleRef"]["name"] == manifests.of("Role")["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", **account}]
    assert account["namespace"] == "agents"
    container = manifests.container("refresher")
    assert (container.pod["serviceAccountName"], container.pod["automountServiceAccountToken"]) == ("refresher", False)
    mounts = {mount["mountPath"]: mount["name"] for mount in container.spec["volumeMounts"]}
    assert str(Path(manifests.environment(container)["REFRESHER_CONFIG"]).parent) in mounts
    files = [
        item["path"]
        for source in container.volume(mounts[str(ACCOUNT)])["projected"]["sources"]
        for of in source.values()
        for item in of.get("items", [of])
    ]
    assert sorted(files) == ["ca.crt", "namespace", "token"]
    others = [each for each in manifests.containers() if each.mount("account") is not None]
    assert [each.name for each in others] == ["refresher"], "an agent could write Secrets"


def test_refresher_and_agents_share_a_group_and_nothing_else(manifests: Manifests) -> None:
    """If it failed, an agent could read refresh tokens, or could not read its own."""
    for container in manifests.containers():
        pod, user = container.pod["securityContext"], container.spec["securityContext"]["runAsUser"]
        assert (user == REFRESHER) == container.is_refresher
        assert container.spec["securityContext"]["runAsGroup"] == user, "other users have this group too"
        assert AGENTS in (pod.get("fsGroup"), *pod.get("supplementalGroups", ()))
        if "fsGroup" in pod:
            # Otherwise each start would make each record writable for the group, and refresher refuses that.
            assert pod["fsGroupChangePolicy"] == "OnRootMismatch"
        if container.is_refresher:
            assert manifests.environment(container).get("REFRESHER_TOKENS_GROUP") == str(AGENTS)


def test_agents_read_tokens_write_demands_and_mount_nothing_else_of_refresher(manifests: Manifests) -> None:
    """If it failed, an agent could read or replace files of refresher, or would never see a new token."""
    for container in agents(manifests):
        mounts = {mount["name"]: mount for mount in container.spec["volumeMounts"]}
        assert set(mounts) == {"code", "tokens", "demands"}
        assert mounts["tokens"]["readOnly"] is True
        assert "subPath" not in mounts["tokens"], "a file that is renamed into it later would not appear"
        given = manifests.environment(container)
        owner = rendered("sidecar").environment(rendered("sidecar").container("refresher"))
        assert given["REFRESHER_TOKENS_DIR"] == owner["REFRESHER_TOKENS_DIR"]
        assert Path(given["REFRESHER_TOKENS_DIR"]).is_relative_to(mounts["tokens"]["mountPath"])
        # Only the directory itself: a process that can write to its parent could replace it.
        assert given["REFRESHER_DEMANDS_DIR"] == mounts["demands"]["mountPath"]
        assert mounts["demands"]["subPath"] == Path(owner["REFRESHER_DEMANDS_DIR"]).name


def test_refresher_makes_each_of_its_directories_below_a_volume(manifests: Manifests) -> None:
    """If it failed, refresher could not make or use them, or a token would be written to the container layer."""
    for container in owners(manifests):
        given = manifests.environment(container)
        places = {mount["mountPath"]: mount["name"] for mount in container.spec["volumeMounts"]}
        where = {name: _volume(container, Path(given[f"REFRESHER_{name}_DIR"]), places) for name in _DIRECTORIES}
        assert "persistentVolumeClaim" in where["STATE"]
        if container.name == "seed":
            continue  # it refreshes nothing, so it spills nothing
        # An emptyDir ends with its pod, and each run of a job is a pod.
        is_job = container.pod["restartPolicy"] == "Never" if "restartPolicy" in container.pod else False
        assert (
            "persistentVolumeClaim" in where["SPILL"]
            if is_job
            else where["SPILL"]["name"] == "spill" and "medium" not in where["SPILL"]["emptyDir"]
        )


_DIRECTORIES = ("STATE", "SPILL", "TOKENS", "DEMANDS")


def _volume(container: Container, directory: Path, places: dict[str, str]) -> dict[str, Any]:
    if container.name == "seed" and not any(directory.is_relative_to(place) for place in places):
        return {}
    (place,) = (place for place in places if directory.is_relative_to(place))
    assert str(directory) != place, "the kubelet owns the top of a volume"
    mount = container.mount(places[place])
    assert mount is not None
    assert not mount.get("readOnly")
    assert "subPath" not in mount
    return container.volume(places[place])


def test_agents_of_many_pods_wait_for_the_directory_that_they_mount() -> None:
    """If it failed, the kubelet would make it as root before refresher does, and refresher would see no demand."""
    manifests = rendered("many")
    (agent,) = agents(manifests)
    (waiting,) = agent.pod["initContainers"]
    demands = manifests.environment(manifests.container("refresher"))["REFRESHER_DEMANDS_DIR"]
    assert demands in waiting["args"][0]
    assert waiting["volumeMounts"] == [{"name": "demands", "mountPath": str(Path(demands).parent), "readOnly": True}]
    compile(waiting["args"][0], "wait", "exec")


def test_the_pod_for_manual_work_uses_the_state_of_the_others() -> None:
    """If it failed, a login in that pod would be stored where no run finds it."""
    hands, cron = rendered("hands"), rendered("cronjob")
    given = hands.environment(hands.container("refresher"))
    assert given.items() <= cron.environment(cron.container("refresher")).items()
    assert {item["kind"] for item in hands.objects} == {"Pod", "ConfigMap"}, "deleting the pod would delete the logins"


def test_tokens_of_a_sidecar_are_in_memory() -> None:
    """If it failed, access tokens would be on the disk of the node."""
    for name in ("tokens", "demands"):
        assert rendered("sidecar").container("refresher").volume(name)["emptyDir"]["medium"] == "Memory"


def test_variables_and_commands_exist_in_the_program(manifests: Manifests) -> None:
    """If it failed, a variable would be ignored without a message, or a container would end with 'no such option'."""
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
def test_no_probe_or_stop_kills_refresher_during_an_exchange(kustomization: str) -> None:
    """If it failed, the kubelet could kill refresher between the server's answer and the disk: a grant in doubt, or lost."""
    container = rendered(kustomization).container("refresher")
    live, ready, start = (container.spec[f"{probe}Probe"] for probe in ("liveness", "readiness", "startup"))
    assert "--live" in live["exec"]["command"]
    assert "--live" in start["exec"]["command"]
    assert "--live" not in ready["exec"]["command"]
    assert live["periodSeconds"] * live["failureThreshold"] > 2 * (DEADLINE + LOCK_WAIT)
    assert live["terminationGracePeriodSeconds"] > 2 * (DEADLINE + LOCK_WAIT)
    # The command gives the daemon 5 s, and a busy node needs time to start the command.
    assert all(probe["timeoutSeconds"] >= 15 for probe in (live, ready, start))
    assert start["periodSeconds"] * start["failureThreshold"] >= 120
    assert seconds(container.spec["args"][-1]) == GRACE
    assert container.pod["terminationGracePeriodSeconds"] > GRACE + 10


def test_a_sidecar_starts_before_its_agent_and_stops_after_it() -> None:
    """If it failed, an agent would start without tokens, or refresher would be killed while the agent still runs."""
    manifests = rendered("sidecar")
    container = manifests.container("refresher")
    names = [item["name"] for item in container.pod["initContainers"]]
    assert names == ["seed", "refresher"], "the seed must be imported before the start"
    assert container.spec["restartPolicy"] == "Always"
    assert manifests.of("Deployment")["spec"]["replicas"] == 1
    assert manifests.of("Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    assert container.pod["terminationGracePeriodSeconds"] >= 3 * GRACE


def test_only_one_pod_at_a_time_has_the_grants(manifests: Manifests) -> None:
    """If it failed, two refreshers would send one refresh token, and the server would revoke the login."""
    claim = rendered("sidecar").of("PersistentVolumeClaim", "refresher-grants")
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    for item in manifests.objects:
        pods = [pod for pod in manifests.pods() if item.get("spec", {}).get("template", {}).get("spec") is pod]
        if any(_holds_grants(pod) for pod in pods):
            assert (item["spec"]["replicas"], item["spec"]["strategy"]) == (1, {"type": "Recreate"})


def _holds_grants(pod: dict[str, Any]) -> bool:
    claims = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]]
    return "refresher-grants" in claims


def test_runs_of_cron_do_not_overlap_and_rotate_what_expires_before_the_next() -> None:
    """If it failed, runs would overlap, a run that saves a token would be killed, or a token would expire between two runs."""
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


def test_the_secret_with_the_seed_is_optional(manifests: Manifests) -> None:
    """If it failed, a pod would not start after its Secret was deleted, as the page says."""
    for container in manifests.containers():
        if container.name == "seed":
            mount = container.mount("seed")
            assert mount is not None
            assert mount["readOnly"] is True
            assert container.volume("seed")["secret"]["optional"] is True
            assert container.spec["args"] == ["import", "--from", mount["mountPath"], "--if-absent"]
        else:
            assert container.mount("seed") is None, "the refresh token would be where it is not needed"


def test_all_kustomizations_have_the_same_refresher() -> None:
    """If it failed, a corrected probe, mount or right would be missing in the other kustomizations."""
    seeds = [_comparable(rendered(kustomization).container("seed")) for kustomization in ("sidecar", "cronjob", "many")]
    runs = [_comparable(rendered(kustomization).container("refresher")) for kustomization in ("sidecar", "many")]
    for one, other in (*pairwise(seeds), *pairwise(runs)):
        assert one == other


def _comparable(container: Container) -> dict[str, Any]:
    # Resources depend on the number of grants, and only a sidecar has a restart policy.
    return {key: value for key, value in container.spec.items() if key not in ("resources", "restartPolicy")}
