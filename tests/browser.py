"""A headless Chromium, driven over the WebDriver protocol with the standard library alone."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAMS = {"chromium": shutil.which("chromium"), "chromedriver": shutil.which("chromedriver")}
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic", "--disable-dev-shm-usage", "--hide-scrollbars"),
)


def missing() -> str | None:
    """Why no browser can be started here; None if one can."""
    lacking = [name for name, path in PROGRAMS.items() if path is None]
    return f"{' and '.join(lacking)} not installed (Debian: chromium, chromium-driver)" if lacking else None


class Browser:
    """One window; use it in a `with` statement."""

    def __enter__(self) -> "Browser":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._base = f"http://127.0.0.1:{port}"
        self._driver = subprocess.Popen(
            [PROGRAMS["chromedriver"], f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        options = {"args": list(ARGUMENTS), "binary": PROGRAMS["chromium"]}
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        for _ in range(100):
            try:
                answer = self._post("/session", {"capabilities": {"alwaysMatch": capabilities}})
                break
            except urllib.error.HTTPError as error:
                raise RuntimeError(error.read().decode()) from error
            except urllib.error.URLError:  # the driver is still starting
                time.sleep(0.1)
        self._session = f"/session/{answer['sessionId']}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            request = urllib.request.Request(self._base + self._session, method="DELETE")
            urllib.request.urlopen(request, timeout=30).close()
        finally:
            self._driver.terminate()
            self._driver.wait(timeout=30)

    def open(self, page: Path | str, width: int, height: int, dark: bool = False) -> None:
        """Shows a file or an address in a window of this size, as a phone or a desk would, in a light or dark theme."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._command("Emulation.setDeviceMetricsOverride", metrics)
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._command("Emulation.setEmulatedMedia", {"features": theme})
        self._post(f"{self._session}/url", {"url": page.as_uri() if isinstance(page, Path) else page})

    def drop(self, file: Path, selector: str) -> None:
        """Drops a file on the middle of an element, as a hand with a mouse would."""
        where = self.run(
            f"const box = document.querySelector('{selector}').getBoundingClientRect();"
            "return {x: box.x + box.width / 2, y: box.y + box.height / 2}"
        )
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self._command("Input.dispatchDragEvent", {"type": kind, **where, "data": data})

    def run(self, script: str) -> Any:
        """The value that JavaScript returns."""
        return self._post(f"{self._session}/execute/sync", {"script": script, "args": []})

    def console(self) -> list[str]:
        """Messages since the last call, of every level."""
        return [entry["message"] for entry in self._post(f"{self._session}/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """Addresses asked for since the last call, data addresses aside."""
        entries = self._post(f"{self._session}/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        sent = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith("data:")]

    def screenshot(self, path: Path) -> None:
        """The whole page, however long, as PNG."""
        taken = self._command("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(taken["data"]))

    def _command(self, name: str, parameters: dict[str, Any]) -> Any:
        return self._post(f"{self._session}/goog/cdp/execute", {"cmd": name, "params": parameters})

    def _post(self, path: str, content: dict[str, Any]) -> Any:
        request = urllib.request.Request(self._base + path, json.dumps(content).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]
