"""Pages in a real browser, for tests: chromium without a window, spoken to through a pipe (no port, no package)."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
PATIENCE = 60.0  # seconds


class Browser:
    """One page at a time, of any size."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._pending = b""
        self._count = 0
        self._session: str | None = None
        self._target: str | None = None

    def open(self, address: str, width: int, height: int = 900) -> None:
        """Goes to an address in a new window of that size and waits until the page has loaded."""
        old, self._session = self._target, None
        self._target = self._call("Target.createTarget", url="about:blank")["targetId"]
        if old:
            self._call("Target.closeTarget", targetId=old)
        self._session = self._call("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = PATIENCE) -> float:
        """Until the expression is true; returns how many seconds that took."""
        start = time.monotonic()
        while not self.run(condition):
            assert time.monotonic() - start < seconds, f"{condition} is not true after {seconds} s"
            time.sleep(0.1)
        return time.monotonic() - start

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        """A PNG of the window, or of the whole page."""
        taken = self._call("Page.captureScreenshot", captureBeyondViewport=whole, **(self._clip() if whole else {}))
        path.write_bytes(base64.b64decode(taken["data"]))
        return path

    def pdf(self, path: Path) -> Path:
        """The page as it is printed on A4."""
        printed = self._call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=True)
        path.write_bytes(base64.b64decode(printed["data"]))
        return path

    def _clip(self) -> dict[str, Any]:
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._from], [], [], 2 * PATIENCE)
            assert ready, "the browser does not answer"
            part = os.read(self._from, 1 << 20)
            assert part, "the browser has ended"
            self._pending += part
        first, _, self._pending = self._pending.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        return message


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser with an empty profile; it ends with the block."""
    assert PROGRAM
    its_input, our_output = os.pipe()
    our_input, its_output = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        shell = f"exec '{PROGRAM}' --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars "
        shell += f"--remote-debugging-pipe --user-data-dir='{profile}' --no-first-run about:blank "
        shell += f"3<&{its_input} 4>&{its_output}"
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(["bash", "-c", shell], pass_fds=(its_input, its_output), stdout=quiet, stderr=quiet)
        os.close(its_input)
        os.close(its_output)
        try:
            yield Browser(our_output, our_input)
        finally:
            process.terminate()
            process.wait()
            os.close(our_output)
            os.close(our_input)
