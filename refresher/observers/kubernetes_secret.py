"""Writes an access token into a Secret of the cluster that this process runs in, by server-side apply."""

import asyncio
import base64
import json
import os
from pathlib import Path
from typing import Any, Final

import anyio
import httpcore

from refresher.common import reading
from refresher.common.errors import ServerAway
from refresher.common.secret import Secret, mask
from refresher.grants.outputs import SecretOutput
from refresher.oauth.tls import ssl_context

__all__ = ["ACCOUNT", "apply", "manifest"]

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where the kubelet puts the service account of a pod."""

_DEADLINE: Final = 4.0
"""Seconds. It is shorter than the time that ``reading`` waits for a call."""
_LARGEST: Final = 64 * 1024


def manifest(output: SecretOutput, namespace: str, token: str | None) -> dict[str, Any]:
    """Return the fields that refresher owns in the Secret; without a token none."""
    data = {} if token is None else {"data": {output.key: base64.b64encode(token.encode("ascii")).decode("ascii")}}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": output.secret, "namespace": namespace}} | data


def apply(output: SecretOutput, token: str | None, *, seconds: float = _DEADLINE, dry_run: bool = False) -> None:
    """Make the key of the Secret ``token``, or remove it, in ``seconds`` at most.

    ``dry_run``: only ask whether that is allowed.

    Raises ``ServerAway``, ``ConfigError`` and ``OSError``.
    """
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise ServerAway(
            "refresher does not run in a cluster (KUBERNETES_SERVICE_HOST is not set): use it in a pod only"
        )
    # The kubelet replaces this token each hour, so it is read each time.
    account = reading.read_named(ACCOUNT / "token").data.decode("ascii", "replace").strip()
    own = output.namespace or reading.read_named(ACCOUNT / "namespace").data.decode("ascii", "replace").strip()
    tls = ssl_context(str(ACCOUNT / "ca.crt"))
    # A manager for each key: one manager would remove the keys of the other outputs of this Secret.
    query = f"fieldManager=refresher-{output.key}"
    content = json.dumps(manifest(output, own, token)).encode("ascii")
    if removes := token is None and not dry_run:
        # Apply would create a Secret that does not exist; this answers 404.
        kind, content = "application/merge-patch+json", json.dumps({"data": {output.key: None}}).encode("ascii")
    else:
        kind, query = "application/apply-patch+yaml", f"{query}&force=true{'&dryRun=All' if dry_run else ''}"
    url = (
        f"https://{f'[{host}]' if ':' in host else host}:{port}/api/v1/namespaces/{own}/secrets/{output.secret}?{query}"
    )
    headers = [
        ("Authorization", f"Bearer {account}"),
        ("Content-Type", kind),  # JSON is YAML
        ("Accept", "application/json"),
    ]
    status, body = 0, bytearray()

    async def send() -> None:
        nonlocal status
        with anyio.fail_after(seconds):
            async with (
                httpcore.AsyncConnectionPool(ssl_context=tls) as pool,
                pool.stream("PATCH", url, headers=headers, content=content) as response,
            ):
                status = response.status
                async for piece in response.aiter_stream():
                    body.extend(piece[: _LARGEST - len(body)])
                    if len(body) >= _LARGEST:
                        return

    try:
        asyncio.run(send())
    except Exception as error:  # noqa: BLE001  an error of the transport; its text could quote a header
        if not status:
            why = "does not answer in time" if isinstance(error, TimeoutError) else "cannot be reached or verified"
            raise ServerAway(f"the API of the cluster at {host}:{port} {why}: check the network policy") from None
    if status not in (200, 201) and not (removes and status == 404):
        raise ServerAway(_explain(status, output, own, _message(bytes(body), account, token)))


def _explain(status: int, output: SecretOutput, namespace: str, message: str) -> str:
    match status:
        case 401:
            return (
                "the API of the cluster refuses the service account token of this pod: does its service account exist?"
            )
        case 403:
            return (
                f"the service account of this pod may not patch (or create) the Secret {output.secret} in {namespace}: "
                "give it the Role in deploy/kubernetes/outputs"
            )
        case 404:
            return f"the cluster has no namespace {namespace}: create it, or correct the namespace of the output"
        case 409:
            return "the Secret was changed at the same time: refresher tries again"
        case _:
            return f"the API of the cluster answered {status}{message and f' ({message})'}: refresher tries again"


def _message(body: bytes, account: str, token: str | None) -> str:
    """Return the message of a Status, without secrets."""
    try:
        text = json.loads(body)["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    known = [account] if token is None else [account, token, base64.b64encode(token.encode("ascii")).decode("ascii")]
    return mask(str(text), map(Secret, known))
