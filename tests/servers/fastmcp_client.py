"""A FastMCP client that logs in and keeps its login in files, as FastMCP's documentation shows it.

.venv/fastmcp/bin/python -m tests.servers.fastmcp_client URL DIRECTORY
"""

import sys
from pathlib import Path

import anyio
from fastmcp import Client
from fastmcp.client.auth import OAuth
from key_value.aio.stores.filetree import (
    FileTreeStore,
    FileTreeV1CollectionSanitizationStrategy,
    FileTreeV1KeySanitizationStrategy,
)


async def main(url: str, directory: Path) -> None:
    """Log in, and list the tools."""
    directory.mkdir()
    store = FileTreeStore(
        data_directory=directory,
        key_sanitization_strategy=FileTreeV1KeySanitizationStrategy(directory),
        collection_sanitization_strategy=FileTreeV1CollectionSanitizationStrategy(directory),
    )
    async with Client(url, auth=OAuth(token_storage=store)) as client:
        await client.list_tools()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], Path(sys.argv[2]))
