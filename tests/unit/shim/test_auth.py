"""One ``BearerAuth`` for httpx and httpx2."""

import copy
import subprocess
import sys

import httpx
import httpx2
import pytest

import shim
from tests.support.published import Published
from tests.unit.shim.flow import BEARER


def test_one_object_serves_clients_of_both_libraries(published: Published) -> None:
    """If it failed, a framework could refuse the object, or send its requests without a token."""
    published.put(1)
    auth = shim.BearerAuth(published.source())
    seen: list[str] = []

    def one(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(200)

    def other(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers["authorization"])
        return httpx2.Response(200)

    with httpx.Client(auth=auth, transport=httpx.MockTransport(one)) as client:
        client.get("https://mcp.example/")
    with httpx2.Client(auth=auth, transport=httpx2.MockTransport(other)) as client2:
        client2.get("https://mcp.example/")
    assert seen == [BEARER.format(1)] * 2


def test_the_body_of_a_rejection_can_be_read_in_both_libraries(published: Published) -> None:
    """If it failed, a refused call would end with an error of the library, and not with the server's answer."""
    published.put(1)
    auth = shim.BearerAuth(published.source(), wait=0)
    with httpx.Client(auth=auth, transport=httpx.MockTransport(lambda _: httpx.Response(401, text="no"))) as client:
        assert client.get("https://mcp.example/").text == "no"
    with httpx2.Client(auth=auth, transport=httpx2.MockTransport(lambda _: httpx2.Response(401, text="no"))) as client2:
        assert client2.get("https://mcp.example/").text == "no"


def test_a_subclass_and_a_copy_are_accepted_too(published: Published) -> None:
    """If it failed, a framework that copies its settings would refuse the object."""

    class Mine(shim.BearerAuth):
        pass

    auth = Mine(published.source())
    for each in (auth, copy.copy(auth)):
        assert isinstance(each, Mine)
        assert isinstance(each, shim.BearerAuth)
        assert isinstance(each, httpx.Auth)
        assert isinstance(each, httpx2.Auth)
        assert each.source is auth.source


@pytest.mark.parametrize(
    ("missing", "use"),
    [
        (["httpx"], "import httpx2; httpx2.Client(auth=auth, trust_env=False)"),
        (["httpx2"], "import httpx; httpx.Client(auth=auth, trust_env=False)"),
        ([], "import httpx, httpx2; httpx.Client(auth=auth, trust_env=False); httpx2.AsyncClient(auth=auth)"),
    ],
    ids=["without httpx", "without httpx2", "both"],
)
def test_it_serves_the_library_that_is_installed(missing: list[str], use: str) -> None:
    """If it failed, a program with one library, or that imports it later than shim, could not use the object."""
    hide = "".join(f"sys.modules[{name!r}] = None; " for name in missing)
    code = f"import sys; {hide}import shim; auth = shim.BearerAuth('linear'); {use}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_a_library_it_says_what_to_install() -> None:
    """If it failed, the author of an agent would not learn what is missing."""
    code = "import sys; sys.modules['httpx'] = sys.modules['httpx2'] = None; import shim; shim.BearerAuth('linear')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: BearerAuth needs httpx or httpx2: install one of them" in done.stderr


def test_a_name_that_shim_does_not_have_is_an_error() -> None:
    """If it failed, a wrong name would be an error later, and somewhere else."""
    with pytest.raises(AttributeError, match="no attribute 'Bearer'"):
        _ = getattr(shim, "Bearer")  # noqa: B009  a type checker refuses the attribute
