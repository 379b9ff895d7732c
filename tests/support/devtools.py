"""Headless Chromium, driven by its DevTools protocol over a pipe."""

import base64
import fcntl
import json
import os
import select
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.support.oidc import SERVERS

__all__ = ["Browser", "Tab", "missing"]

_AXE: Final = SERVERS / "node_modules/axe-core/axe.min.js"
_LONGEST: Final = 90.0
_NOTE_PROBLEMS: Final = """
window.problems = [];
addEventListener('error', (event) => problems.push(String(event.message)));
addEventListener('unhandledrejection', (event) => problems.push(String(event.reason)));
document.addEventListener('securitypolicyviolation', (event) => problems.push(`${event.violatedDirective}: ${event.sample}`));
"""
_KEYS: Final = {"Tab": 9, "Enter": 13, " ": 32, "ArrowDown": 40, "ArrowRight": 39}


def missing() -> str | None:
    """Return what must be installed for axe; ``None`` if nothing is missing."""
    return None if _AXE.is_file() else "axe-core is not installed: (cd tests/servers && npm ci)"


class Browser:
    """One Chromium, whose tabs share nothing."""

    def __init__(self) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        pipes = (*os.pipe(), *os.pipe())
        # Chromium reads commands from descriptor 3 and writes to descriptor 4: the others must not be these two.
        commands, self._write, self._read, answers = (fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in pipes)
        for each in pipes:
            os.close(each)
        command = [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-background-networking", "--no-proxy-server", "--disable-extensions", "--hide-scrollbars"),
            *("--remote-debugging-pipe", f"--user-data-dir={self._profile.name}", "about:blank"),
        ]
        shell = ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "bash", *command]
        self._process = subprocess.Popen(
            shell, pass_fds=(commands, answers), stderr=subprocess.DEVNULL, start_new_session=True
        )
        os.close(commands)
        os.close(answers)
        self._sent = 0
        self._received = bytearray()

    def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        """Send a command and return its result."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params}
        data = json.dumps(message if session is None else message | {"sessionId": session}).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while (answer := self._message()).get("id") != self._sent:
            pass  # an event
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _message(self) -> dict[str, Any]:
        ends = time.monotonic() + _LONGEST
        while (end := self._received.find(b"\0")) < 0:
            ready, _, _ = select.select([self._read], [], [], max(0.0, ends - time.monotonic()))
            assert ready, f"Chromium has not answered for {_LONGEST} s"
            more = os.read(self._read, 1 << 20)
            assert more, "Chromium has ended"
            self._received += more
        message: dict[str, Any] = json.loads(self._received[:end])
        del self._received[: end + 1]
        return message

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._write)  # it ends by itself
        os.close(self._read)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(30)
        self._profile.cleanup()


class Tab:
    """A page in a context of its own, in which no script may fail and nothing may break the content security policy."""

    def __init__(self, browser: Browser, url: str, *, width: int = 1440, dark: bool = False) -> None:
        self._browser = browser
        self._context = browser.call("Target.createBrowserContext")["browserContextId"]
        target = browser.call("Target.createTarget", url="about:blank", browserContextId=self._context)["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.look(width=width, dark=dark)
        self.call("Page.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=_NOTE_PROBLEMS)
        self.go(url)

    def call(self, method: str, **params: Any) -> Any:
        """Send a command of this page and return its result."""
        return self._browser.call(method, self._session, **params)

    def go(self, url: str) -> None:
        """Load ``url``."""
        self.call("Page.navigate", url=url)
        self.wait("location.protocol === 'http:' && document.readyState === 'complete'")

    def look(self, *, width: int = 1440, height: int = 900, dark: bool = False, **features: str) -> None:
        """Set the width of the window, the colour scheme, and other media features."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        media = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"} | {
            name.replace("_", "-"): value for name, value in features.items()
        }
        self.call("Emulation.setEmulatedMedia", features=[{"name": k, "value": v} for k, v in media.items()])

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true."""
        ends = time.monotonic() + _LONGEST
        while not self.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < ends, f"after {_LONGEST} s still not true: {expression}\n{self.text()}"
            time.sleep(0.05)

    def text(self) -> str:
        """Return the visible text."""
        text: str = self.evaluate("document.body.innerText")
        return text

    def press(self, key: str) -> None:
        """Press and release a key."""
        text = {"Enter": "\r", "Tab": ""}.get(key, key if len(key) == 1 else "")
        event = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS.get(key, ord(key[0].upper()))}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write a picture of the window, or of the whole page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def violations(self) -> list[str]:
        """Return what axe finds."""
        if not self.evaluate("'axe' in window"):
            self.evaluate(f"{_AXE.read_text()}; true")
        found: list[str] = self.evaluate(
            "axe.run({resultTypes: ['violations']}).then((r) => r.violations.flatMap((v) =>"
            " v.nodes.map((n) => `${v.id}: ${n.html.slice(0, 200)} ${n.failureSummary}`)))"
        )
        return found

    def close(self) -> None:
        """Close the page."""
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            assert self.evaluate("window.problems") == []
        self.close()
