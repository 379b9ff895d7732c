"""One ``BearerAuth`` for httpx and httpx2: it accepts the requests of either library that is installed."""

from functools import cache
from typing import TYPE_CHECKING, Any, Self

from shim._bearer import BearerFlow

__all__ = ["BearerAuth"]

if TYPE_CHECKING:
    import httpx
    import httpx2

    class BearerAuth(BearerFlow, httpx.Auth, httpx2.Auth):  # type: ignore[misc]  # the flows differ in their requests
        """As a type checker sees it. Where one of the libraries is missing, the class is still an auth of the other."""

else:

    class BearerAuth(BearerFlow):
        __doc__ = BearerFlow.__doc__

        def __new__(cls, *_: object, **__: object) -> Self:
            """Return an instance of a subclass that each installed library accepts as its own ``Auth``."""
            return object.__new__(_accepted(cls))


@cache
def _accepted(cls: type[Any]) -> type[Any]:
    # Both, if both are installed: a program can import the second one after it has made the object.
    libraries = []
    for name in ("httpx", "httpx2"):
        try:
            libraries.append(__import__(name))
        except ImportError:
            continue
    if not libraries:
        raise ImportError("BearerAuth needs httpx or httpx2: install one of them where the agent runs")
    if hasattr(cls, "_byte_stream"):
        return cls  # copy calls the constructor of the subclass
    stream = type("ByteStream", tuple(library.ByteStream for library in libraries), {})
    fields = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "_byte_stream": stream}
    return type(cls.__name__, (cls, *(library.Auth for library in libraries)), fields)
