"""The address in the first event of the old SSE transport."""

import pytest

from refresher.gateway.endpoint_event import EndpointEvent, LeadsAway

EVENT = b": hello\n\nevent: endpoint\ndata: /messages?s=1\n\n"
MOVED = b": hello\n\nevent: endpoint\ndata: /linear/messages?s=1\n\n"


def passed(data: bytes, size: int) -> bytes:
    events = EndpointEvent(lambda address: f"/linear{address}" if address.startswith("/") else None)
    return b"".join(events.feed(data[at : at + size]) for at in range(0, len(data), size)) + events.rest()


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_the_address_is_changed_however_the_stream_is_cut(size: int, end: bytes) -> None:
    """If it failed, an agent of the old transport would send its messages past the gateway, or to another path."""
    more = b"event: endpoint\ndata: /later\n\ndata: x\n\n"
    for before, after in (
        (EVENT + more, MOVED + more),
        (b"data: /a\nevent: endpoint\n\n", b"data: /linear/a\nevent: endpoint\n\n"),
    ):
        assert passed(before.replace(b"\n", end), size) == after.replace(b"\n", end)


@pytest.mark.parametrize(
    "data", [b"data: /x\n\nevent: endpoint\ndata: /x\n\n", b"data: " + b"x" * 40000, b"data: unfinished", b""]
)
def test_any_other_stream_passes_unchanged(data: bytes) -> None:
    """If it failed, the answers of servers would be changed, or held back without a limit."""
    assert passed(data, 5) == data


def test_a_comment_passes_at_once() -> None:
    """If it failed, a connection that only comments keep alive would look dead."""
    assert EndpointEvent(lambda address: address).feed(b": ping\n\n") == b": ping\n\n"


def test_an_address_of_another_server_ends_the_stream() -> None:
    """If it failed, an agent would send its key to a foreign server."""
    with pytest.raises(LeadsAway):
        passed(b"event: endpoint\ndata: https://evil.example/\n\n", 1000)
