"""The manifests of deploy/kubernetes/cluster: two refreshers without volumes, and a mirror beside each agent."""

import kubernetes_validate
import pytest

from refresher.config import parse_store
from refresher.storage.postgres.database import Database
from tests.conftest import need
from tests.support import kubectl
from tests.support.manifests import DEPLOY, Manifests, rendered
from tests.system import test_kubernetes as common


@pytest.fixture
def manifests() -> Manifests:
    need(kubectl.missing())
    return rendered("cluster")


def test_the_cluster_is_valid_and_unprivileged(manifests: Manifests) -> None:
    """If it failed, a cluster would refuse an object, or refresher would have rights that it does not need."""
    old, new = (kubectl.render(DEPLOY / "cluster", version) for version in kubectl.VERSIONS)
    assert old == new
    for item in manifests.objects:
        for version in common.KUBERNETES:
            kubernetes_validate.validate(item, version, strict=True)
    common.test_pods_satisfy_the_restricted_standard(manifests)
    common.test_every_container_requests_what_it_needs_and_has_no_cpu_limit(manifests)
    common.test_every_temporary_volume_has_a_limit_below_that_of_its_pod(manifests)
    common.test_refresher_and_agents_share_a_group_and_nothing_else(manifests)
    common.test_variables_and_commands_exist_in_the_program(manifests)


def test_two_refreshers_need_no_volume_and_agents_no_refresh_token(manifests: Manifests) -> None:
    """If it failed, a pod could not move to another node, or an agent would have the password of the refreshers."""
    assert not [item for item in manifests.objects if item["kind"] == "PersistentVolumeClaim"]
    assert manifests.of("Deployment", "refresher")["spec"]["replicas"] == 2
    passwords = {
        container.name: [each["valueFrom"]["secretKeyRef"]["name"] for each in container.spec.get("env", ()) if "valueFrom" in each]
        for container in manifests.containers()
    }  # fmt: skip
    assert passwords == {
        "schema": ["refresher-db-app"],
        "refresher": ["refresher-db-app"],
        "refresher-mirror": ["refresher-db-mirror"],
        "agent": [],
    }
    mirror, agent = manifests.container("refresher-mirror"), manifests.container("agent")
    assert mirror.spec["restartPolicy"] == "Always"
    assert mirror.spec["args"][0] == "mirror"
    for name in ("tokens", "demands"):
        assert mirror.volume(name)["emptyDir"]["medium"] == "Memory"
    assert {mount["name"] for mount in agent.spec["volumeMounts"]} == {"code", "tokens", "demands"}
    roles = (DEPLOY.parent / "postgresql/mirror.sql").read_text()
    stores = {name: manifests.environment(manifests.container(name))["REFRESHER_STORE"] for name in passwords if name != "agent"}  # fmt: skip
    for name, store in stores.items():
        Database(parse_store(store) or "").close()  # a valid address without a password
        assert "sslmode=verify-full" in store
        container = manifests.container(name)
        (place,) = [mount["mountPath"] for mount in container.spec["volumeMounts"] if mount["name"] == "database"]
        assert f"sslrootcert={place}/ca.crt" in store
    assert "CREATE ROLE refresher_mirror " in roles
    assert "//refresher_mirror@" in stores["refresher-mirror"]
    assert stores["refresher"] == stores["schema"]


def test_only_dns_servers_and_the_database_are_reached(manifests: Manifests) -> None:
    """If it failed, refresher could not reach its database, or could reach other pods."""
    policy = manifests.of("NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == manifests.of("Deployment", "refresher")["spec"]["selector"]["matchLabels"]  # fmt: skip
    assert policy["ingress"] == []
    anywhere, database = policy["egress"]
    assert anywhere == {"ports": [*common.DNS, common.HTTPS]}
    assert [each["port"] for each in database["ports"]] == [5432]
