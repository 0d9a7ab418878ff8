"""A page in a real browser, without a window: Debian's chromium, asked over its own protocol on a pipe."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--remote-debugging-pipe")
LIMIT_S = 600


def needs_chromium() -> str:
    """Where the browser is; skips the test where there is none, unless it must be there."""
    if found := shutil.which("chromium"):
        return found
    if os.environ.get("SFT_REQUIRE_CHROMIUM"):
        pytest.fail("SFT_REQUIRE_CHROMIUM is set, and there is no chromium")
    pytest.skip("no chromium (Debian's package of that name)")


class Tab:
    """One tab. What it logs is kept in `said`."""

    def __init__(self, send: int, receive: int) -> None:
        self.send, self.receive = send, receive
        self.buffer, self.count, self.session, self.said = b"", 0, "", list[str]()
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters} | ({"sessionId": self.session} if self.session else {})
        os.write(self.send, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.count:
            pass
        assert "error" not in answer, answer
        return dict(answer["result"])

    def look_at(self, page: Path, width: int, dark: bool) -> None:
        """Open a file on a screen of this width, in CSS pixels, and wait until all of it is there."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=page.absolute().as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def value(self, script: str) -> Any:
        return self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"].get("value")

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            piece = os.read(self.receive, 1 << 16)
            assert piece, "chromium is gone"
            self.buffer += piece
        text, _, self.buffer = self.buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if message.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.said.append(json.dumps(message["params"]))
        return message


@contextmanager
def a_tab(folder: Path) -> Iterator[Tab]:
    """A browser with one tab, its profile in a folder; it ends with the context, and after LIMIT_S at the latest."""
    to_it, from_us = os.pipe()
    to_us, from_it = os.pipe()
    script = 'exec timeout "$0" "$@" 3<&"$IN" 4>&"$OUT"'  # the protocol is spoken on these two
    command = ["bash", "-c", script, str(LIMIT_S), needs_chromium(), *FLAGS, f"--user-data-dir={folder}"]
    env = {**os.environ, "IN": str(to_it), "OUT": str(from_it)}
    with subprocess.Popen(command, pass_fds=(to_it, from_it), env=env, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        os.close(to_it)
        os.close(from_it)
        try:
            yield Tab(from_us, to_us)
        finally:
            process.terminate()  # `timeout` hands it on
            process.wait(60)
            os.close(from_us)
            os.close(to_us)
