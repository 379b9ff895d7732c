"""The page deploy/agents/README.md: what ``refresher connect`` prints for each client.

    python -m tests.support.recipes

writes the part of the page below its mark from the table of clients.
"""

from typing import Final

from refresher.cli.clients.client import Client, Values
from refresher.cli.connect import CLIENTS
from tests.support.documents import ROOT

__all__ = ["EXAMPLE", "MARK", "PAGE", "rendered"]

PAGE: Final = "deploy/agents/README.md"

MARK: Final = "<!-- The rest is written by `python -m tests.support.recipes` -->\n"

EXAMPLE: Final = Values(
    name="linear",
    server_url="https://mcp.linear.app/mcp",
    refresher="/home/you/.venv/bin/refresher",
    state_dir="/home/you/.local/state/refresher",
)
"""The values of the page."""

_USES: Final = {
    "auth": "[`shim.BearerAuth`](../../shim/README.md#bearerauth)",
    "client": "[`shim.httpx2.async_client`](../../shim/README.md#two-lines)",
    "fetch": "[refresher-fetch.ts](refresher-fetch.ts)",
    "headers": "`refresher headers`",
    "stdio": "`refresher stdio`",
    "gateway": "`refresher gateway`",
}


def rendered() -> str:
    """Return the part of the page below the mark."""
    rows = [f"| [{each.title}](#{_anchor(each)}) | `{each.key}` | {_USES[each.by]} |" for each in CLIENTS]
    table = "\n".join(("| client | `--for` | uses |", "|---|---|---|", *rows))
    return f"\n{table}\n{''.join(map(_section, CLIENTS))}"


def _section(client: Client) -> str:
    text = client.text(EXAMPLE)
    return f"\n## {client.title}\n\nIn {client.where}:\n\n```{client.language}\n{text}```\n\n{client.picked_up}\n"


def _anchor(client: Client) -> str:
    kept = "".join(char for char in client.title.lower() if char.isalnum() or char in " -_")
    return kept.replace(" ", "-")


if __name__ == "__main__":
    path = ROOT / PAGE
    path.write_text(path.read_text().partition(MARK)[0] + MARK + rendered())
