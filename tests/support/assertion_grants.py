"""Grants whose access token comes from a token of somebody else: import, rotate and read them."""

import json
from typing import Any

import msgspec

from refresher.common import clocks
from refresher.grants.record import Grant
from refresher.operations import import_request
from refresher.operations.import_grant import store_grant
from refresher.operations.result import Result
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage.store import Store
from shim._token import TokenFile, parse
from tests.support.assertion_server import AssertionServer

__all__ = ["change", "exchanged", "grant_of", "import_grant", "published_of", "retry_now", "rotate_now"]


def import_grant(store: Store, name: str, fields: dict[str, Any], *, replace: bool = False) -> Grant:
    parsed = import_request.parse(name, json.dumps(fields).encode(), clocks.now())
    return store_grant(store, parsed, replace=replace, if_absent=False, stopping=lambda: False).grant


def rotate_now(store: Store, name: str, *, force: bool = True) -> Result:
    record = store.load(name).record
    seen = -1 if record is None else record.generation
    result = rotate(store, Order(name=name, seen=seen, force=force), Terms(ca_file=None, stopping=lambda: False))
    assert result is not None
    return result


def grant_of(store: Store, name: str) -> Grant:
    record = store.load(name).record
    assert isinstance(record, Grant)
    return record


def published_of(store: Store, name: str) -> TokenFile:
    return parse((store.directories.tokens / f"{name}.json").read_bytes())


def change(store: Store, name: str, **changes: Any) -> None:
    """Write other fields into a record, as if it had come so far by itself."""
    with store.held(name, stopping=lambda: False) as held:
        stored = held.recover()
        assert isinstance(stored.record, Grant)
        held.write(stored, msgspec.structs.replace(stored.record, **changes))


def retry_now(store: Store, name: str) -> None:
    """End the backoff of a failure."""
    failure = grant_of(store, name).failure
    assert failure is not None
    change(store, name, failure=msgspec.structs.replace(failure, retry_at=1.0, moment=None))


def exchanged(server: AssertionServer, **more: Any) -> dict[str, Any]:
    about = {"grant_type": "token_exchange", "client_id": "gateway", "server_url": "https://api.example"}
    return {"token_endpoint": server.token_endpoint, **about, **more}
