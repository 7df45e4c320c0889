"""A headless Chromium that tests open pages with, driven by the DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Browser", "open_browser"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LIMIT_SECONDS = 60
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--autoplay-policy=no-user-gesture-required",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
)
# Chromium reads commands from descriptor 3 and writes answers to 4.
_EXEC = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"
)
_OWN = ("file:", "data:", "blob:", "about:")


@contextlib.contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """The browser with one empty tab. All its files are in `profile`. Skips the test if none is installed."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser on PATH ({', '.join(NAMES)})")
    pipes = [os.pipe(), os.pipe()]
    (commands_in, commands_out), (answers_in, answers_out) = pipes
    first = 10  # above 3 and 4, so that the copies of the child do not overwrite each other
    child_ends = [_above(first, commands_in), _above(first, answers_out)]
    os.close(commands_in)
    os.close(answers_out)
    process = subprocess.Popen(
        [sys.executable, "-c", _EXEC, *map(str, child_ends), program, *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=child_ends,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(profile)},  # killed, it leaves its temporary folders
    )
    for end in child_ends:
        os.close(end)
    try:
        yield Browser(commands_out, answers_in)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(commands_out)
        os.close(answers_in)


def _above(first: int, descriptor: int) -> int:
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, first)


class Browser:
    """A tab. `problems`: messages of the console, errors and requests to other places than this page's files."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._buffer, self._number, self._session = b"", 0, ""
        self._events: list[dict[str, Any]] = []
        self.problems: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, page: Path, *, width: int = 1400, height: int = 1000, scheme: str = "light") -> None:
        """Load a page into a window of this size, in a light or dark scheme, and forget earlier problems."""
        self.resize(width, height)
        self.set_scheme(scheme)
        self.problems.clear()
        self._events.clear()
        answer = self.call("Page.navigate", url=page.as_uri())
        assert "errorText" not in answer, f"{page}: {answer['errorText']}"
        self._wait(lambda: any(event["method"] == "Page.loadEventFired" for event in self._events))

    def resize(self, width: int, height: int = 1000) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def set_scheme(self, scheme: str) -> None:
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def evaluate(self, script: str) -> Any:
        """The value of an expression of JavaScript, of a promise the value that it resolves to."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The complete page as a PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        number, answers = self._number, list[dict[str, Any]]()
        self._wait(lambda: bool(answers), number, answers)
        assert "error" not in answers[0], (method, answers[0]["error"])
        return answers[0].get("result", {})

    def _wait(self, done: Any, number: int = 0, answers: list[dict[str, Any]] | None = None) -> None:
        """Read messages until `done`; the answer to the command `number` goes to `answers`."""
        until = time.monotonic() + LIMIT_SECONDS
        while not done():
            while b"\0" not in self._buffer:
                readable, _, _ = select.select([self._answers], [], [], max(0, until - time.monotonic()))
                data = os.read(self._answers, 1 << 20) if readable else b""
                assert data, "the browser ended" if readable else f"the browser did not answer in {LIMIT_SECONDS} s"
                self._buffer += data
            text, _, self._buffer = self._buffer.partition(b"\0")
            message = json.loads(text)
            if "method" in message:
                self._note(message)
            elif answers is not None and message["id"] == number:
                answers.append(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, values = event["method"], event["params"]
        self._events.append(event)
        if method == "Log.entryAdded":
            self.problems.append(f"log: {values['entry']['text']}")
        elif method == "Runtime.consoleAPICalled":
            self.problems.append(f"console: {[one.get('value') for one in values['args']]}")
        elif method == "Runtime.exceptionThrown":
            self.problems.append(f"exception: {values['exceptionDetails']['text']}")
        elif method == "Network.requestWillBeSent" and not values["request"]["url"].startswith(_OWN):
            self.problems.append(f"request: {values['request']['url']}")
