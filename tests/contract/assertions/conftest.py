"""Stores of each kind, and servers that take tokens of others."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from refresher.storage.store import Store
from tests.support.assertion_server import AssertionServer, Issuer
from tests.support.postgres import Cluster
from tests.support.stores import KINDS, Place, open_place


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty place for grants, of each kind."""
    yield from _opened(request, tmp_path, request.param)


@pytest.fixture
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty place for grants in files."""
    yield from _opened(request, tmp_path, "files")


def _opened(request: pytest.FixtureRequest, root: Path, kind: str) -> Iterator[Store]:
    def cluster() -> Cluster:
        found: Cluster = request.getfixturevalue("postgres")
        return found

    place: Place
    with open_place(kind, root, cluster) as place:
        yield place.open()


@pytest.fixture
def issuer() -> Issuer:
    """Puts tokens into files, as a platform does."""
    return Issuer()


@pytest.fixture
def server(issuer: Issuer) -> Iterator[AssertionServer]:
    """The authorization server of a workload."""
    with AssertionServer(issuer) as made:
        yield made


@pytest.fixture
def company() -> Iterator[AssertionServer]:
    """The identity provider of a company."""
    with AssertionServer() as made:
        yield made


@pytest.fixture
def saas(company: AssertionServer) -> Iterator[AssertionServer]:
    """The authorization server of an MCP server, which trusts the company."""
    with AssertionServer(company.own) as made:
        yield made
