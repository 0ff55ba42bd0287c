"""A headless Chromium for tests, spoken to over its debugging pipe, so that no other library is needed.

with Browser.start(folder) as browser:
    page = browser.open("file:///…/page.html", width=1280, height=800)
    page.run("document.title")
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60.0
"""That an answer may take."""
KEYS = {"Enter": ("\r", 13), "Escape": ("", 27), "/": ("/", 191), "?": ("?", 191)}


class Browser:
    """A running browser; make one with `start`."""

    def __init__(self, process: subprocess.Popen[bytes], write: int, read: int) -> None:
        self._process = process
        self._write = write
        self._read = read
        self._rest = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []
        """All that the browser told unasked."""

    @classmethod
    @contextmanager
    def start(cls, folder: Path, *flags: str) -> Iterator[Browser]:
        """A browser with its profile in `folder`; skips the test where there is none."""
        program = next(filter(None, map(shutil.which, NAMES)), None)
        if program is None:
            pytest.skip("no Chromium on PATH")
        their_read, our_write = os.pipe()
        our_read, their_write = os.pipe()
        command = [
            *("sh", "-c", f'exec "$0" "$@" 3<&{their_read} 4>&{their_write}', program),
            *("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"),
            *("--hide-scrollbars", f"--user-data-dir={folder / 'profile'}", *flags),
        ]
        process = subprocess.Popen(
            command, pass_fds=(their_read, their_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(their_read)
        os.close(their_write)
        try:
            yield cls(process, our_write, our_read)
        finally:
            os.close(our_write)  # the browser ends itself when its pipe does
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(our_read)

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol; its result."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def open(self, url: str, width: int = 1280, height: int = 800, dark: bool = False) -> Page:
        """A page in a tab of its own, when its viewer is drawn."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.ask(f"{domain}.enable")
        page.resize(width, height)
        page.dark(dark)
        page.ask("Page.navigate", url=url)
        page.wait("document.querySelector('#agentrec-viewer')?.dataset.ready === ''")
        return page

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise RuntimeError(f"the browser has ended, with code {self._process.poll()}")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        decoded: dict[str, Any] = json.loads(message)
        return decoded


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.ask(method, self._session, **parameters)

    def run(self, script: str) -> Any:
        """The value of an expression, awaited; `root` is the shadow tree of the viewer."""
        root = "const root = document.querySelector('#agentrec-viewer')?.shadowRoot"
        source = f"(async () => {{ {root}; return {script.strip()} }})()"
        result = self.ask("Runtime.evaluate", expression=source, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"])[:2000])
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 30.0) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            if time.monotonic() > end:
                raise TimeoutError(f"never true: {condition}; {self.complaints()}")
            time.sleep(0.02)

    def press(self, *keys: str, shift: bool = False) -> None:
        """Press keys one after another: characters, or names such as "Enter"."""
        for key in keys:
            text, code = KEYS.get(key, (key if len(key) == 1 else "", ord(key[0].upper())))
            how: dict[str, Any] = {
                "key": key,
                "windowsVirtualKeyCode": code,
                "modifiers": 8 if shift or (key.isupper() and len(key) == 1) else 0,
            }
            self.ask("Input.dispatchKeyEvent", type="keyDown", **how, **({"text": text} if text else {}))
            self.ask("Input.dispatchKeyEvent", type="keyUp", **how)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.ask("Input.insertText", text=text)

    def resize(self, width: int, height: int) -> None:
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def dark(self, wanted: bool) -> None:
        feature = {"name": "prefers-color-scheme", "value": "dark" if wanted else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[feature])

    def picture(self, path: Path) -> Path:
        """Write what is seen to a PNG file."""
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot")["data"]))
        return path

    def complaints(self) -> list[str]:
        """All warnings and errors that the page gave so far, violations of its policy among them."""
        self.run("1")
        found = []
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] in ("warning", "error"):
                found.append(event["params"]["entry"]["text"])
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(event["params"]["exceptionDetails"])[:500])
            if event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "warning"):
                found.append(json.dumps(event["params"]["args"])[:500])
        return found

    def requests(self) -> list[str]:
        """Addresses that the page asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self._browser.events
            if event.get("sessionId") == self._session and event["method"] == "Network.requestWillBeSent"
        ]
