"""A headless Chromium, driven through chromedriver's own HTTP interface (W3C WebDriver), so that no further package is needed."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from needed import absent
from ports import free_ports

QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--disable-default-apps", "--disable-extensions", "--hide-scrollbars", "--window-size=1200,900",
)  # fmt: skip


def need_chromium() -> tuple[str, str]:
    """The paths of Chromium and its driver; a skip with the reason, or a failure where the system's tests are required."""
    browser = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if browser and driver:
        return browser, driver
    reason = f"no {'chromium' if not browser else 'chromedriver'} on the path (Debian: apt-get install chromium chromium-driver)"
    absent(reason)


class Browser:
    """One session. Everything that is asked of the network and said on the console is kept."""

    def __init__(self, profile: Path, *switches: str) -> None:
        chromium, chromedriver = need_chromium()
        (port,) = free_ports(1)
        self.address = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen([chromedriver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        options = {"binary": chromium, "args": [*QUIET, f"--user-data-dir={profile}", *switches]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        self.session = ""
        for _ in range(100):
            try:
                self.session = "/session/" + self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
                break
            except (ConnectionError, urllib.error.URLError):
                time.sleep(0.1)
        assert self.session, "chromedriver did not answer"

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._call("DELETE", self.session)
        self.process.terminate()
        self.process.wait(120)

    def open(self, page: Path) -> None:
        self.visit(page.resolve().as_uri())

    def visit(self, url: str) -> None:
        self._call("POST", f"{self.session}/url", {"url": url})

    def until(self, script: str, holds: Callable[[object], bool], seconds: float = 60.0) -> object:
        """The value of a script as soon as something holds for it; a failure that shows the last value after so many seconds."""
        end = time.monotonic() + seconds
        while not holds(value := self.run(script)):
            assert time.monotonic() < end, value
            time.sleep(0.3)
        return value

    def run(self, script: str, *arguments: object) -> object:
        """Run JavaScript in the page; `return` gives the value."""
        return self._call("POST", f"{self.session}/execute/sync", {"script": script, "args": list(arguments)})

    def press(self, key: str, seen: str, *arguments: object) -> None:
        """Press a key where the focus is, until the script `seen` says that it has arrived: a busy browser may lose one that is pressed
        before it listens."""
        actions = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        for _ in range(20):
            self._call("POST", f"{self.session}/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})
            if self.run(seen, *arguments):
                return

    def console(self) -> list[str]:
        """Warnings and errors of the console."""
        return [entry["message"] for entry in self._log("browser") if entry["level"] in ("WARNING", "SEVERE")]

    def requests(self) -> list[str]:
        """Every address that a page from a file asked for (not those of the browser's own first tab)."""
        events = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent if params["documentURL"].startswith("file:")]

    def screenshot(self) -> bytes:
        return base64.b64decode(self._call("GET", f"{self.session}/screenshot"))

    def _log(self, kind: str) -> list[dict[str, str]]:
        return self._call("POST", f"{self.session}/se/log", {"type": kind})

    def _call(self, method: str, path: str, body: object | None = None):
        data = json.dumps(body if body is not None else {}).encode() if method == "POST" else None
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]
