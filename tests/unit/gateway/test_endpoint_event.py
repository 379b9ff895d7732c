"""The addresses in ``endpoint`` events of the old SSE transport."""

import pytest

from refresher.gateway.endpoint_event import EndpointEvents, LeadsAway

FOREIGN = b"event: endpoint\ndata: https://evil.example/\n\n"


def moving() -> EndpointEvents:
    return EndpointEvents(lambda address: f"/linear{address}" if address.startswith("/") else None)


def passed(data: bytes, size: int = 1000) -> bytes:
    events = moving()
    return b"".join(events.feed(data[at : at + size]) for at in range(0, len(data), size)) + events.rest()


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_each_address_is_changed_however_the_stream_is_cut(size: int, end: bytes) -> None:
    """If it failed, an agent of the old transport would send its messages past the gateway, or to another path."""
    for before, after in (
        (
            b"\xef\xbb\xbfevent: endpoint\ndata: /m?s=1\n\ndata: /x\n\nevent:endpoint\nid: 1\ndata:/n\n\n",
            b"\xef\xbb\xbfevent: endpoint\ndata: /linear/m?s=1\n\ndata: /x\n\nevent:endpoint\nid: 1\ndata: /linear/n\n\n",
        ),
        (b": hello\n\nevent: message\nevent: endpoint\ndata: /m", b": hello\n\nevent: message\nevent: endpoint\ndata: /linear/m"),
    ):  # fmt: skip
        assert passed(before.replace(b"\n", end), size) == after.replace(b"\n", end)


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    "data",
    [
        b"event: endpoints\ndata: /x\n\nevent: endpoint\nevent: message\ndata: /x\n\ndata: event: endpoint\ndata: /x",
        b"event: endpoint\n\ndata: /x\n\n",
        b"data: " + b"x" * 40000 + b"\n\n" + b"y" * 40000 + b"\nevent",
        b"",
    ],
)
def test_any_other_stream_passes_unchanged(data: bytes, size: int) -> None:
    """If it failed, the answers of servers would be changed, or held back without a limit."""
    assert passed(data, size) == data


def test_nothing_else_is_held_back() -> None:
    """If it failed, a connection that only comments keep alive would look dead, and events would come late."""
    events = moving()
    for data in (b": ping\n\n", b"data: part", b" of a line\r", b"\n\r", b"id:", b"7\r"):
        assert events.feed(data) == data


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize(
    "data",
    [
        FOREIGN,
        FOREIGN.removesuffix(b"\n\n"),
        b"\xef\xbb\xbf" + FOREIGN,
        b"data: x\n\n" + FOREIGN,
        b"event: endpoint\ndata: /m\n\n" + FOREIGN,
        b": " + b"x" * 40000 + b"\n" + FOREIGN,
        b"data: https://evil.example/\nevent: endpoint\n\n",
        b"event: endpoint\n\xef\xbb\xbfevent: message\ndata: https://evil.example/\n\n",
        b"event: endpoint\ndata: /m\ndata: https://evil.example/\n\n",
        b"event: endpoint \ndata: https://evil.example/\n\n",
        b"event: endpoint\ndata: /" + b"x" * 40000,
    ],
)
def test_an_address_of_another_server_ends_the_stream(data: bytes, end: bytes, size: int) -> None:
    """If it failed, an agent would send its key to a foreign server."""
    with pytest.raises(LeadsAway):
        passed(data.replace(b"\n", end), size)
