"""What the browser tests stand on: Chromium, a window that watches itself, a mail server that keeps what it gets."""

import email.policy
import os
import re
import shutil
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, sync_playwright

from tests.support import full

AXE: str = Axe().axe_script
EVERYTHING = {"resultTypes": ["violations"], "rules": {"target-size": {"enabled": True}}}
CONTRAST = {"resultTypes": ["violations"], "runOnly": ["color-contrast"]}
# Each width and each scheme sees every rule; with --full, contrast is looked at in all four.
LOOKS: tuple[tuple[int, Literal["light", "dark"], dict[str, Any]], ...] = (
    (360, "light", EVERYTHING),
    (360, "dark", CONTRAST),
    (1280, "dark", EVERYTHING),
    (1280, "light", CONTRAST),
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium. Without one the test is skipped, but fails where CI=true."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not program:
        stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        stop("Chromium is not here: install it (Debian, Ubuntu: apt install chromium)")
    options = ["gpu", "quic", "background-networking", "component-update", "sync"]
    arguments = ["--no-first-run", *(f"--disable-{option}" for option in options)]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")  # its sandbox refuses to be started by root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


class Window:
    """A visitor's window with cookies of its own. What goes wrong in it is kept in `troubles`."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.url = url
        self.troubles: list[str] = []
        # Without motion, so that no colour is looked at while it changes.
        self.context = browser.new_context(base_url=url, reduced_motion="reduce", **options)
        self.context.set_default_timeout(10_000)
        self.context.on("console", self.on_console)
        self.context.on("weberror", lambda error: self.troubles.append(str(error.error)))
        self.context.on("request", self.on_request)
        self.page: Page = self.context.new_page()

    def on_console(self, message: ConsoleMessage) -> None:
        # That the page itself answers 404 is what a test asked for; anything that a page asks for has to be there.
        itself = message.text.startswith("Failed to load resource") and message.location["url"] == self.page.url
        if message.type in ("error", "warning") and not itself:
            self.troubles.append(f"{self.page.url}: {message.type}: {message.text}")

    def on_request(self, request: Request) -> None:
        if not request.url.startswith((f"{self.url}/", "data:")):
            self.troubles.append(f"{self.page.url} asks for {request.url}")

    def go(self, path: str, heading: str) -> None:
        self.page.goto(path)
        self.at(heading)

    def at(self, heading: str) -> None:
        """Waits until the page with this first heading is there, and looks at it from all sides."""
        self.page.get_by_role("heading", level=1, name=heading, exact=True).wait_for()
        self.inspect()

    def inspect(self) -> None:
        """Asserts that axe finds nothing, narrow and light, wide and dark, and that nothing scrolls sideways."""
        self.page.evaluate(AXE)
        for width, scheme, rules in LOOKS if full.chosen else LOOKS[::2]:
            self.page.set_viewport_size({"width": width, "height": 800})
            self.page.emulate_media(color_scheme=scheme)
            where = f"{self.page.url}, {width} px, {scheme}"
            if (scroll := self.page.evaluate("document.documentElement.scrollWidth - innerWidth")) > 0:
                self.troubles.append(f"{where}: {scroll} px wider than the window")
            for found in self.page.evaluate("rules => axe.run(rules)", rules)["violations"]:
                nodes = [f"{node['html']}: {node['failureSummary']}" for node in found["nodes"]]
                self.troubles.append(f"{where}: {found['id']}: {nodes}")
        assert not self.troubles, "\n".join(self.troubles)

    def fill(self, **values: str) -> None:
        """Types into the fields of these names."""
        for name, value in values.items():
            self.page.locator(f"[name={name}]").fill(value)

    def press(self, name: str) -> None:
        """Presses the button of this name in the page's main part."""
        self.main.get_by_role("button", name=name, exact=True).click()

    @property
    def main(self) -> Locator:
        return self.page.get_by_role("main")

    def close(self) -> None:
        self.context.close()
        assert not self.troubles, "\n".join(self.troubles)


class MailServer(socketserver.ThreadingTCPServer):
    """An SMTP server (RFC 5321) on a free port of 127.0.0.1 that delivers nothing."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), MailSession)
        self.messages: list[EmailMessage] = []
        self.port = int(self.server_address[1])

    def __enter__(self) -> "MailServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def link(self, address: str) -> str:
        """The first link in the last message to `address`."""
        bodies = [str(message.get_content()) for message in self.messages if message["To"] == address]
        assert bodies, f"nothing was sent to {address}"
        found = re.search(r"http://\S+", bodies[-1])
        assert found, bodies[-1]
        return found[0]


class MailSession(socketserver.StreamRequestHandler):
    server: MailServer

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        for line in self.rfile:
            match line.split()[0].upper():
                case b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    data = b"".join(iter(self.rfile.readline, b".\r\n"))
                    message = email.message_from_bytes(data, policy=email.policy.default)
                    assert isinstance(message, EmailMessage)
                    self.server.messages.append(message)
                case b"QUIT":
                    self.wfile.write(b"221 bye\r\n")
                    return
            self.wfile.write(b"250 ok\r\n")
