"""Programs that run a command for their headers, start a server, or connect to an address."""

from typing import Final

from refresher.cli.clients.client import Client

__all__ = ["PROGRAMS"]

_BRIDGE: Final = (
    "refresher stdio attaches the current token to each request, and replaces a revoked token within it: no call fails."
)
_NOT_TRIED: Final = f"{_BRIDGE} From its documentation: not tried with the program."

_HELPER: Final = "{refresher:sh} {options:sh} {headers:sh}"
_COMMAND: Final = '"command": "{refresher}",\n      "args": ["{options}", "{stdio}"]'


def _json(section: str, entry: str) -> str:
    """Return a JSON file with one server in a section."""
    return f'{{\n  "{section}": {{\n    "{{name}}": {{\n      {entry}\n    }}\n  }}\n}}\n'


PROGRAMS: Final[tuple[Client, ...]] = (
    Client(
        key="claude-code",
        title="Claude Code",
        by="headers",
        where="`.mcp.json` of the project, or a file for `claude --mcp-config`",
        language="json",
        picked_up="On a 401, Claude Code runs the command once for all calls that wait, connects again and repeats "
        "them: no call fails. Without --verify, a revocation ends the connection. When a new login is needed, Claude "
        "Code drops the server until a person reconnects it; the lines for Claude Desktop work here too, name the "
        "login command, and go on after the login. Tried with 2.1.332.",
        snippet=_json(
            "mcpServers", f'"type": "http",\n      "url": "{{server_url}}",\n      "headersHelper": "{_HELPER}"'
        ),
    ),
    Client(
        key="codex",
        title="Codex",
        by="headers",
        where="`~/.codex/config.toml`",
        language="toml",
        picked_up="On a 401, Codex runs the command again and repeats the call: no call fails. Without --verify, calls "
        "fail from a revocation until the next rotation. Codex clears the environment of the command, so settings "
        "must be in refresher's configuration file. Tried with 0.171.0.",
        snippet=f'[mcp_servers."{{name}}"]\nurl = "{{server_url}}"\nhttp_headers_helper = "{_HELPER}"\n',
    ),
    Client(
        key="opencode",
        title="opencode",
        by="stdio",
        where="`opencode.json`",
        language="json",
        picked_up=f"{_BRIDGE} Tried with 1.18.33; it takes fixed headers only.",
        snippet=_json(
            "mcp",
            '"type": "local",\n      "timeout": 60000,\n      "command": ["{refresher}", "{options}", "{stdio}"]',
        ),
    ),
    Client(
        key="gemini-cli",
        title="Gemini CLI",
        by="stdio",
        where="`~/.gemini/settings.json`",
        language="json",
        picked_up=f"{_BRIDGE} Tried with 0.61.0; it takes fixed headers only.",
        snippet=_json("mcpServers", _COMMAND),
    ),
    Client(
        key="claude-desktop",
        title="Claude Desktop",
        by="stdio",
        where="`claude_desktop_config.json`, in place of the entry that starts mcp-remote",
        language="json",
        picked_up=_NOT_TRIED,
        snippet=_json("mcpServers", _COMMAND),
    ),
    Client(
        key="cursor",
        title="Cursor",
        by="stdio",
        where="`~/.cursor/mcp.json`, or `.cursor/mcp.json` of the project",
        language="json",
        picked_up=_NOT_TRIED,
        snippet=_json("mcpServers", _COMMAND),
    ),
    Client(
        key="vscode",
        title="VS Code",
        by="stdio",
        where="`.vscode/mcp.json`",
        language="json",
        picked_up=_NOT_TRIED,
        snippet=_json("servers", f'"type": "stdio",\n      {_COMMAND}'),
    ),
    Client(
        key="goose",
        title="goose",
        by="stdio",
        where="`~/.config/goose/config.yaml`",
        language="yaml",
        picked_up=_NOT_TRIED,
        snippet="""\
extensions:
  "{name}":
    {type: stdio, name: "{name}", enabled: true, timeout: 300,
     cmd: "{refresher}", args: ["{options}", "{stdio}"]}
""",
    ),
    Client(
        key="mcp-remote",
        title="mcp-remote",
        by="gateway",
        where="the configuration of the program that starts mcp-remote, with a key from `refresher gateway key add`",
        language="json",
        picked_up="The gateway attaches the current token to each request, and replaces a revoked token within it: no "
        "call fails. With the token itself in --header, mcp-remote begins a login of its own when it expires. "
        "refresher stdio replaces mcp-remote, and needs neither a gateway nor a key. Tried with 0.15.1.",
        snippet=_json(
            "mcpServers",
            '"command": "npx",\n      "args": ["mcp-remote", "http://{gateway}/{name}{path}", "--header",'
            ' "Authorization:${AUTH_HEADER}"],\n      "env": {"AUTH_HEADER": "Bearer KEY"}',
        ),
    ),
)
