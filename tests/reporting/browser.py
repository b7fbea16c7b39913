"""A headless Chromium, driven through a pipe: no port is opened and no package is needed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
)


def found() -> str | None:
    """Return the browser's command, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading, self.writing = os.fdopen(reading, "rb"), os.fdopen(writing, "wb")
        self.count, self.session, self.asked = 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Network.enable")

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """Send one command and return its answer; network requests seen meanwhile are noted in `asked`."""
        self.count += 1
        about = {"sessionId": self.session} if self.session else {}
        self.writing.write(json.dumps({"id": self.count, "method": method, "params": values, **about}).encode() + b"\0")
        self.writing.flush()
        while True:
            answer = self.receive()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def receive(self) -> dict[str, Any]:
        """Return the next message."""
        data = bytearray()
        while (byte := self.reading.read(1)) != b"\0":
            assert byte, "the browser has ended"
            data += byte
        message = json.loads(data)
        if message.get("method") == "Network.requestWillBeSent":
            self.asked.append(message["params"]["request"]["url"])
        return message

    def show(self, path: Path, width: int = 1200, *, dark: bool = False) -> None:
        """Open a file in a window of the given width."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.resolve().as_uri())
        while self.receive().get("method") != "Page.loadEventFired":
            pass

    def ask(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press a key."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def picture(self, out: Path, whole: bool = True) -> None:
        """Write what is seen as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole, **({} if not whole else self._clip()))
        out.write_bytes(base64.b64decode(shot["data"]))

    def _clip(self) -> dict[str, Any]:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}


@contextmanager
def browser(command: str, profile: Path) -> Iterator[Page]:
    """Start a browser with an empty profile and give a tab of it."""
    ours, theirs = os.pipe(), os.pipe()
    pair = f"{command} {' '.join(QUIET)} --user-data-dir={profile} 3<&{theirs[0]} 4>&{ours[1]} 2>/dev/null"
    process = subprocess.Popen(["bash", "-c", f"exec {pair}"], pass_fds=(theirs[0], ours[1]))
    os.close(theirs[0])
    os.close(ours[1])
    try:
        yield Page(ours[0], theirs[1])
    finally:
        process.terminate()
        process.wait(timeout=20)
