"""A headless Chromium driven through its DevTools protocol over two pipes: no driver, no port, no package."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """Path of a Chromium, None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Chromium:
    """One page of a headless browser, with what it said and asked for.

    Args:
        folder: an empty folder for its profile.
        width: of the window, CSS pixels.
        height: likewise.

    Attributes:
        console: texts of everything written to the console and of every error.
        requests: addresses that were asked for.
    """

    def __init__(self, folder: Path, width: int = 1280, height: int = 900) -> None:
        binary = find_chromium()
        if binary is None:
            raise FileNotFoundError(f"none of {NAMES} is installed")
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        # Root has no sandbox; WebGL comes from SwiftShader, where there is no GPU.
        options = ["--headless=new", "--no-sandbox", "--enable-unsafe-swiftshader", "--disable-dev-shm-usage",
                   "--no-first-run", "--disable-background-networking", "--disable-component-update",
                   "--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={folder}",
                   f"--window-size={width},{height}", "about:blank"]  # fmt: skip
        redirect = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirect, binary, *options],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.console: list[str] = []
        self.requests: list[str] = []
        self._buffer, self._count, self._session = b"", 0, ""
        try:
            target = self._call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self._call(f"{domain}.enable")
            self.resize(width, height)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._session = ""
            self._call("Browser.close", timeout=10)
            self._process.wait(10)
        except (OSError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def open(self, path: Path, ready: str, timeout: float = 240) -> None:
        """Open a file and wait until an expression is true in it.

        Raises:
            TimeoutError: with the console's texts.
        """
        self.visit(path.resolve().as_uri(), ready, timeout)

    def visit(self, address: str, ready: str = "document.readyState === 'complete'", timeout: float = 240) -> None:
        """Open an address and wait until an expression is true in its page."""
        self._call("Page.navigate", url=address)
        self.wait_for(ready, timeout)

    def give_files(self, selector: str, *files: Path) -> None:
        """Choose files in a field, as a person does in the dialogue that it opens."""
        field = self._call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        names = [str(path) for path in files]
        self._call("DOM.setFileInputFiles", files=names, objectId=field["result"]["objectId"])

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key, such as "Tab", 9 or "Enter", 13, "\\r"."""
        options = {"key": key, "windowsVirtualKeyCode": code, **({"text": text} if text else {})}
        self._call("Input.dispatchKeyEvent", type="keyDown", **options)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def drag(self, start: tuple[float, float], end: tuple[float, float], button: str = "left") -> None:
        """Drag the mouse from one place of the window to another, CSS pixels."""
        held = {"button": button, "buttons": {"left": 1, "right": 2}[button], "clickCount": 1}
        for kind, (x, y), state in (
            ("mouseMoved", start, {}),
            ("mousePressed", start, held),
            ("mouseMoved", end, held),
            ("mouseReleased", end, {**held, "buttons": 0}),
        ):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **state)

    def write(self, text: str) -> None:
        """Type a text where the focus is."""
        self._call("Input.insertText", text=text)

    def wait_for(self, expression: str, timeout: float = 60) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + timeout
        while not self.evaluate(expression):
            if time.monotonic() > end:
                page = self.evaluate("document.body.innerText")
                raise TimeoutError(f"{expression} was not true in {timeout} s; console: {self.console}; page: {page}")
            time.sleep(0.2)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def before_loading(self, script: str) -> None:
        """Run a script in every page that is opened from now on, before its own."""
        self._call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def resize(self, width: int, height: int, scale: float = 1, mobile: bool = False) -> None:
        """Another window or, with `mobile`, a phone."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
        self._call("Emulation.setDeviceMetricsOverride", **size)

    def emulate(self, media: str = "", colour_scheme: str = "light") -> None:
        """Another medium ("print") or colour scheme ("dark")."""
        features = [{"name": "prefers-color-scheme", "value": colour_scheme}]
        self._call("Emulation.setEmulatedMedia", media=media, features=features)

    def screenshot(self, selector: str = "", whole: bool = False) -> bytes:
        """PNG of what is seen, of one element or of the whole page."""
        options: dict[str, Any] = {}
        if selector:
            box = self.evaluate(
                f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect(); "
                "return {x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height}; })()"
            )
            options["clip"] = {**box, "scale": 1}
        answer = self._call("Page.captureScreenshot", captureBeyondViewport=whole or bool(selector), **options)
        return base64.b64decode(answer["data"])

    def print_to_pdf(self) -> bytes:
        """The page as PDF, on the paper that its style sheet asks for."""
        answer = self._call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
        return base64.b64decode(answer["data"])

    def _call(self, method: str, timeout: float = 240, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._out, content) :]
        end = time.monotonic() + timeout
        while True:
            answer = self._receive(end)
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _receive(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError("Chromium does not answer")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise OSError("Chromium has ended")
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(text)

    def _note(self, event: dict[str, Any]) -> None:
        method, values = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif method == "Runtime.consoleAPICalled":
            words = " ".join(str(a.get("value", a.get("description", ""))) for a in values["args"])
            self.console.append(f"{values['type']}: {words}")
        elif method == "Runtime.exceptionThrown":
            self.console.append(f"exception: {values['exceptionDetails']}")
        elif method == "Log.entryAdded":
            entry = values["entry"]
            self.console.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}")
