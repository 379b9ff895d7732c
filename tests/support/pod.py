"""A pod without a cluster: the volumes, mounts, users, groups and rights of its manifest, by Linux alone.

Volumes are made as the kubelet makes them: the top directory belongs to root and the ``fsGroup`` of the pod. A container
has its own read-only root (with programs, this checkout, and its mounts), its own process ids, the user and groups of
the manifest, and no capabilities. It uses the network of the tests, as the containers of a pod share one network.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.support.command import LONGEST, wait_until
from tests.support.isolated import Given, as_user, isolated
from tests.support.manifests import Container, Manifests

__all__ = ["Pod", "Running"]

_CHECKOUT: Final = Path(__file__).parent.parent.parent
# The variables of the image that matter here, with the programs of this environment.
_IMAGE: Final = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}


class Running:
    """A started container, whose output is in a file."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self._process = process
        self._output = output
        self._children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        self._first: int | None = None

    @property
    def first(self) -> int:
        """The process id of its first process outside the container."""
        if self._first is None:
            wait_until(lambda: self.ended or self._begun(), "the container starts")
            assert not self.ended, self.says()
            self._first = int(self._children.read_text())
        return self._first

    def _begun(self) -> bool:
        """Whether it has its own root, with all mounts."""
        children = self._children.read_text().split()
        return bool(children) and Path(f"/proc/{children[0]}/root").readlink() != Path("/")

    def says(self) -> str:
        """Return its output until now."""
        return self._output.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its first process."""
        os.kill(self.first, number)

    def end(self) -> int:
        """Wait for its end, and return its exit code."""
        return self._process.wait(LONGEST)

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """Kill it, as the kernel does when memory is exhausted."""
        if not self.ended:
            with suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self._process.wait(LONGEST)


class Pod:
    """A pod below ``root``; its persistent volumes are in ``claims`` and may come from an earlier pod."""

    def __init__(
        self, root: Path, manifests: Manifests, pod: dict[str, Any], secret: Mapping[str, bytes] | None = None
    ) -> None:
        self._root = root
        self._manifests = manifests
        self._pod = pod
        self._secret = secret or {}
        self._group = pod["securityContext"].get("fsGroup", 0)
        self._mounted: list[Path] = []
        self._running: list[Running] = []
        self.environment: dict[str, str] = {}
        """Variables that differ from the manifest: ports and addresses of a test."""

    def __enter__(self) -> Self:
        (self._root / "claims").mkdir(parents=True, exist_ok=True)
        self._volumes = self._root / "volumes"
        self._volumes.mkdir()
        for volume in self._pod["volumes"]:
            self._make(volume)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for running in self._running:
            running.kill()
        for mounted in self._mounted:
            subprocess.run(["umount", "-l", str(mounted)], check=True)
        shutil.rmtree(self._volumes)

    def volume(self, name: str) -> Path:
        """Return the path of a volume outside the container."""
        claim = next(there for there in self._pod["volumes"] if there["name"] == name).get("persistentVolumeClaim")
        return self._volumes / name if claim is None else self._root / "claims" / claim["claimName"]

    def _make(self, volume: dict[str, Any]) -> None:
        place = self.volume(volume["name"])
        if "persistentVolumeClaim" in volume:
            if not place.exists():
                place.mkdir()
                self._hand_over(place, 0o755)
            return
        place.mkdir()
        if "emptyDir" in volume:
            if volume["emptyDir"].get("medium") == "Memory":
                self._mount(place, f"size={volume['emptyDir']['sizeLimit'].removesuffix('i')}")
            self._hand_over(place, 0o777)
        else:
            self._mount(place, "size=1M")
            self._fill(place, volume)

    def _mount(self, place: Path, options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
        self._mounted.append(place)

    def _hand_over(self, place: Path, mode: int) -> None:
        """Give the top of a volume to the group, as the kubelet does."""
        os.chown(place, 0, self._group)
        place.chmod(mode | 0o2770)

    def _fill(self, place: Path, volume: dict[str, Any]) -> None:
        """Write files as the kubelet does: behind a link that is replaced when they change."""
        if "configMap" in volume:
            data = next(
                {name: text.encode() for name, text in there["data"].items()}
                for there in self._manifests.objects
                if there["metadata"]["name"] == volume["configMap"]["name"]
            )
            mode = 0o644
        else:
            data, mode = dict(self._secret), volume["secret"]["defaultMode"]
        (place / "..2026").mkdir()
        (place / "..data").symlink_to("..2026")
        for name, content in data.items():
            file = place / "..2026" / name
            file.write_bytes(content)
            os.chown(file, 0, self._group)
            file.chmod(mode)
            (place / name).symlink_to(f"..data/{name}")

    def start(self, name: str) -> Running:
        """Start a container of the manifest."""
        container = self._container(name)
        place = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=self._root))
        root, output = place / "root", place / "output"
        root.mkdir()
        with output.open("wb") as file:
            process = subprocess.Popen(
                self._command(container, root),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        running = Running(process, output)
        self._running.append(running)
        return running

    def _container(self, name: str) -> Container:
        """Return a container of this pod; other pods may have one with the same name."""
        (found,) = (there for there in self._manifests.containers() if there.name == name and there.pod is self._pod)
        return found

    def inside(self, running: Running, name: str, *command: str, **more: Any) -> subprocess.Popen[str]:
        """Start a command in a running container, as ``kubectl exec`` and probes do."""
        container = self._container(name)
        target = str(running.first)
        return subprocess.Popen(
            ["nsenter", "--target", target, "--mount", "--pid", "--root", "--wd", *self._as(container), *command],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **more,
        )

    def says(self, running: Running, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a container to its end."""
        process = self.inside(running, name, *command, stdin=subprocess.DEVNULL)
        stdout, stderr = process.communicate(timeout=LONGEST)
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    def _as(self, container: Container) -> list[str]:
        """Return a command prefix that sets the user, rights and variables of the container."""
        security = {**self._pod["securityContext"], **container.spec["securityContext"]}
        groups = {self._group, *security.get("supplementalGroups", ())} - {0}
        environment = {**_IMAGE, **self._manifests.environment(container), **self.environment}
        return as_user(security["runAsUser"], security["runAsGroup"], sorted(groups), environment)

    def _command(self, container: Container, root: Path) -> list[str]:
        command = container.spec.get("command") or ["refresher"]
        return isolated(
            root,
            [
                Given(_CHECKOUT, str(_CHECKOUT)),
                Given(Path(sys.prefix), sys.prefix),
                *map(self._given, container.spec["volumeMounts"]),
            ],
            [*self._as(container), *command, *container.spec.get("args", ())],
            writable=not container.spec["securityContext"].get("readOnlyRootFilesystem"),
        )

    def _given(self, mount: dict[str, Any]) -> Given:
        source = self.volume(mount["name"]) / mount.get("subPath", "")
        return Given(source, mount["mountPath"], writable=not mount.get("readOnly", False))
