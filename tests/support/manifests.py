"""Rendered manifests, and the settings of their containers."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from tests.support import kubectl

__all__ = ["DEPLOY", "KUSTOMIZATIONS", "Container", "Manifests", "rendered"]

DEPLOY: Final = Path(__file__).parent.parent.parent / "deploy/kubernetes"

KUSTOMIZATIONS: Final = ("sidecar", "cronjob", "many", "hands")

Object = dict[str, Any]


class Container(NamedTuple):
    """A container and its pod."""

    pod: Object
    spec: Object

    @property
    def name(self) -> str:
        """Its name in the pod."""
        return str(self.spec["name"])

    @property
    def is_refresher(self) -> bool:
        """Whether it runs as refresher, with its settings."""
        return self.name == "refresher" or any(
            source["configMapRef"]["name"].startswith("refresher") for source in self.spec.get("envFrom", ())
        )

    def mount(self, volume: str) -> Object | None:
        """Return how it mounts a volume."""
        return next((mount for mount in self.spec.get("volumeMounts", ()) if mount["name"] == volume), None)

    def volume(self, name: str) -> Object:
        """Return a volume of its pod."""
        return next(volume for volume in self.pod["volumes"] if volume["name"] == name)


class Manifests:
    """The objects of one kustomization."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = objects

    def of(self, kind: str, name: str | None = None) -> Object:
        """Return the one object of a kind, or the one of a name; that of a ConfigMap without its hash."""
        (found,) = (
            there
            for there in self.objects
            if there["kind"] == kind and (name is None or name in (_name(there), _name(there).rpartition("-")[0]))
        )
        return found

    def pods(self) -> Iterator[Object]:
        """Return the specifications of all pods."""
        for there in self.objects:
            spec = there.get("spec", {})
            spec = spec.get("jobTemplate", {}).get("spec", spec)
            if there["kind"] == "Pod":
                yield spec
            elif "template" in spec:
                yield spec["template"]["spec"]

    def containers(self) -> Iterator[Container]:
        """Return each container, including init containers."""
        for pod in self.pods():
            for spec in (*pod.get("initContainers", ()), *pod["containers"]):
                yield Container(pod, spec)

    def container(self, name: str) -> Container:
        """Return the one container of a name."""
        (found,) = (container for container in self.containers() if container.name == name)
        return found

    def environment(self, container: Container) -> dict[str, str]:
        """Return the environment variables of a container."""
        given: dict[str, str] = {}
        for source in container.spec.get("envFrom", ()):
            given |= next(there["data"] for there in self.objects if _name(there) == source["configMapRef"]["name"])
        # The value of a Secret is not here.
        return given | {each["name"]: each["value"] for each in container.spec.get("env", ()) if "value" in each}


def _name(there: Object) -> str:
    return str(there["metadata"]["name"])


@cache
def rendered(kustomization: str, version: str = kubectl.VERSIONS[0]) -> Manifests:
    """Return the manifests in a directory of ``deploy/kubernetes``, rendered once: callers must not change them."""
    return Manifests(list(yaml.safe_load_all(kubectl.render(DEPLOY / kustomization, version))))
