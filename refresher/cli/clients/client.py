"""What is known of a client: the text that a person pastes, and when the client uses a new token."""

import json
import re
import shlex
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

from refresher.common.errors import ConfigError
from refresher.config import DEFAULT_GATEWAY

__all__ = ["By", "Client", "Language", "Values"]

By = Literal["auth", "client", "fetch", "headers", "stdio", "gateway"]
Language = Literal["python", "ts", "json", "toml", "yaml", "sh"]

_PLACEHOLDER: Final = re.compile(r"\{(name|server_url|path|refresher|options|headers|stdio|gateway)(:sh)?\}")


class Values(NamedTuple):
    """The real values of a snippet; all paths are absolute."""

    name: str
    server_url: str
    refresher: str
    state_dir: str
    more_options: tuple[str, ...] = ()
    """What stands after ``--state-dir`` in a command line of refresher: other directories, a configuration file."""
    gateway: str = DEFAULT_GATEWAY
    """The host and the port of the gateway."""
    host: str = ""
    """The host that a path of the gateway must name; empty: none."""
    is_default_url: bool = True
    """Whether the commands find ``server_url`` by themselves, in the token file."""

    @property
    def options(self) -> tuple[str, ...]:
        """The global options of a command line of refresher."""
        return ("--state-dir", self.state_dir, *self.more_options)

    @property
    def headers(self) -> tuple[str, ...]:
        """The command ``headers`` with its options."""
        url = () if self.is_default_url else ("--verify-url", self.server_url)
        return ("headers", self.name, "--verify", *url)

    @property
    def stdio(self) -> tuple[str, ...]:
        """The command ``stdio`` with its options."""
        url = () if self.is_default_url else ("--url", self.server_url)
        return ("stdio", self.name, *url)

    @property
    def path(self) -> str:
        """The path and the query of the server's address, as the gateway needs them after the name of the grant."""
        parts = urlsplit(self.server_url)
        path = parts._replace(scheme="", netloc="", fragment="").geturl()
        return f"/@{self.host}{path}" if self.host else path


class Client(NamedTuple):
    """A client, and the snippet with which it uses a token.

    A snippet contains ``{name}``, ``{server_url}``, its ``{path}``, ``{refresher}``, ``{options}``, ``{headers}``,
    ``{stdio}``, ``{gateway}``. In ``sh`` each is a word of a command line, without quotes. In every other language each
    stands within double quotes; ``{name:sh}`` is a word of a command line there. ``{options}``, ``{headers}`` and
    ``{stdio}`` are several words; ``"{options}"`` is several texts, with commas between them. All other braces are
    text.
    """

    key: str
    """The value of ``--for``."""
    title: str
    by: By
    """What the client uses: ``shim.BearerAuth``, ``shim.httpx2.async_client``, a ``fetch``, ``refresher headers``,
    ``stdio`` or ``gateway``.
    """
    picked_up: str
    """When it uses a new token, after a rotation and after a revocation: one or two sentences."""
    snippet: str
    where: str = "your program"
    """Where the snippet belongs: completes the sentence "Put this into ..."."""
    language: Language = "python"

    def text(self, values: Values) -> str:
        """Return the snippet with the values. Raises ``ConfigError`` if a path cannot be written as text."""

        def written(found: re.Match[str]) -> str:
            value: str | tuple[str, ...] = getattr(values, found[1])
            words = (value,) if isinstance(value, str) else value
            if self.language == "sh":
                return shlex.join(words)
            return '", "'.join(map(_in_quotes, [shlex.join(words)] if found[2] else words))

        text = _PLACEHOLDER.sub(written, self.snippet)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ConfigError("a path is not valid UTF-8, so no file can name it: use another directory") from None
        return text


def _in_quotes(value: str) -> str:
    """Return a text as JSON, TOML, YAML, Python and TypeScript write it between double quotes."""
    return json.dumps(value, ensure_ascii=False)[1:-1].replace("\x7f", "\\u007f")
