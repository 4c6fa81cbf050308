"""Chromium without a window, driven over the DevTools protocol with the standard library alone."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Seconds; much, since other tests keep the processors busy.
PATIENCE = 30.0
FLAGS = (
    "--headless=new",
    # Tests run as root in containers, where its sandbox does not start.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


def find_chromium() -> str | None:
    """Path of a browser, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Socket:
    """The part of the WebSocket protocol (RFC 6455) that DevTools needs: text, both ways."""

    def __init__(self, url: str):
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE)
        self._file = self._socket.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert b"101" in self._file.readline()
        while self._file.readline().strip():
            pass

    def send(self, text: str) -> None:
        content, mask = text.encode(), os.urandom(4)
        head = b"\x81" + struct.pack("!BQ", 0x80 | 127, len(content)) + mask
        repeated = (mask * (len(content) // 4 + 1))[: len(content)]
        masked = int.from_bytes(content) ^ int.from_bytes(repeated)
        self._socket.sendall(head + masked.to_bytes(len(content)))

    def receive(self) -> str:
        parts, last = [], False
        while not last:
            first, size = self._file.read(2)
            last, size = bool(first & 0x80), size & 0x7F
            if size >= 126:
                form = "!H" if size == 126 else "!Q"
                (size,) = struct.unpack(form, self._file.read(struct.calcsize(form)))
            parts.append(self._file.read(size))
        return b"".join(parts).decode()

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class Browser:
    """One page of a browser of its own.

    Attributes:
        complaints: errors and warnings of the console so far, those of the content security policy
            among them.
    """

    def __init__(self, chromium: str):
        self._folder = Path(tempfile.mkdtemp())
        command = [chromium, *FLAGS, f"--user-data-dir={self._folder}", "about:blank"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.complaints: list[str] = []
        self._socket, self._number = Socket(self._page_address()), 0
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def _page_address(self) -> str:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if found := re.search(r"ws://([^/]+)/", line):
                with urlopen(f"http://{found[1]}/json/list", timeout=PATIENCE) as answer:
                    pages = [one for one in json.load(answer) if one["type"] == "page"]
                return pages[0]["webSocketDebuggerUrl"]
        raise AssertionError("the browser did not start")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a DevTools command."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.receive())
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(parameters["entry"]["text"])
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(parameters["exceptionDetails"]))
        if method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
            self.complaints.append(json.dumps(parameters["args"]))

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, script: str, seconds: float = PATIENCE) -> Any:
        """Wait for an expression to be true; gives its value."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(script)):
            assert time.monotonic() < end, (
                f"never: {script}\n{self.evaluate('document.body.innerText')}"
            )
            time.sleep(0.02)
        return value

    def open(self, url: str) -> None:
        """Load a page, also the one that is there, until it says that nothing of it is missing."""
        self.evaluate("window.left = true")
        self.call("Page.navigate", url=url)
        here = f"!window.left && location.href === {json.dumps(url)}"
        self.until(f"{here} && document.readyState === 'complete'")
        self.until("document.querySelector('[aria-busy=true]') === null")

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )

    def prefer(self, **features: str) -> None:
        """Wishes of the reader, such as prefers_color_scheme="dark"."""
        listed = [
            {"name": name.replace("_", "-"), "value": value} for name, value in features.items()
        ]
        self.call("Emulation.setEmulatedMedia", features=listed)

    def key(self, name: str) -> None:
        """Press and release a key."""
        codes = {"Enter": 13, "Tab": 9, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39}
        codes |= {"ArrowDown": 40, "End": 35, "Home": 36, " ": 32}
        text = {"Enter": "\r", " ": " "}.get(name)
        given = {"key": name, "code": name, "windowsVirtualKeyCode": codes[name]}
        self.call(
            "Input.dispatchKeyEvent", type="keyDown", **given, **({"text": text} if text else {})
        )
        self.call("Input.dispatchKeyEvent", type="keyUp", **given)

    def type(self, text: str) -> None:
        """Write into what has the focus."""
        self.call("Input.insertText", text=text)

    def fill(self, selector: str, text: str) -> None:
        """Write into a field, in the place of what stands there."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).select()")
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        self.type(text)

    def click(self, selector: str) -> None:
        """Click with the mouse in the middle of an element, once a click there would meet it."""
        place = self.until(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)}); "
            "if (found === null) return null; "
            "found.scrollIntoView({block: 'center', behavior: 'instant'}); "
            "const box = found.getBoundingClientRect(); "
            "const place = [box.x + box.width / 2, box.y + box.height / 2]; "
            "return found.contains(document.elementFromPoint(...place)) ? place : null; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=place[0],
                y=place[1],
                button="left",
                clickCount=1,
            )

    def texts(self, selector: str) -> list[str]:
        """Text of every element that fits."""
        found = f"[...document.querySelectorAll({json.dumps(selector)})]"
        return self.evaluate(f"{found}.map(one => one.innerText.trim())")

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.communicate(timeout=PATIENCE)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
