"""Firefox and Chromium, real and without a window, driven as a person drives them.

They look up no names, so nothing that they do by themselves leaves the loopback interface.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selenium import webdriver

from cluster.parts import ports
from cluster.parts.part import Part, program
from tests.support.marionette import Marionette

#: Firefox sets more by itself once it is driven (its ``RecommendedPreferences``). These hold from its start.
PREFERENCES: Mapping[str, Any] = {
    "app.normandy.enabled": False,
    "app.update.disabledForTesting": True,
    "browser.safebrowsing.update.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.dns.disabled": True,
    "network.trr.mode": 5,
    "toolkit.telemetry.enabled": False,
}
SWITCHES = (
    *("--headless=new", "--no-first-run", "--no-default-browser-check", "--disable-default-apps"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"),
    *("--disable-domain-reliability", "--disable-client-side-phishing-detection", "--metrics-recording-only"),
    *("--disable-breakpad", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
)


class Browser(ABC):
    """One window of a browser. Each method returns when the page has loaded."""

    name: str
    version: str

    @abstractmethod
    def go(self, url: str) -> None:
        """Show a page as if its address were typed."""

    @abstractmethod
    def click(self, selector: str) -> None:
        """Click on an element, and wait for the page that this leads to."""

    @abstractmethod
    def back(self) -> None:
        """Go back in the history."""

    @abstractmethod
    def forward(self) -> None:
        """Go forward in the history."""

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what the body of an asynchronous function in the page returns; it gets the arguments as ``given``."""
        value, error = self._run(
            "const given = [...arguments], done = given.pop();"
            f"(async () => {{ {script} }})().then(value => done([value, null]), error => done([null, String(error)]))",
            *arguments,
        )
        assert error is None, error
        return value

    @abstractmethod
    def _run(self, script: str, *arguments: Any) -> Any:
        """Return what a script passes to the function that is its last argument."""

    @abstractmethod
    def close(self) -> None:
        """End the browser."""


class _Firefox(Part):
    role = "browser"

    def __init__(self, directory: Path) -> None:
        super().__init__("firefox", directory / "log")
        self._directory = directory

    def command(self) -> Sequence[str]:
        preferences = {**PREFERENCES, "marionette.port": self.port}
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in preferences.items()]
        (self._directory / "user.js").write_text("".join(lines))
        firefox = program("firefox-esr")
        return [firefox, "--headless", "--no-remote", "--marionette", "--profile", str(self._directory)]

    def environment(self) -> Mapping[str, str]:
        return {**os.environ, "HOME": str(self._directory), "MOZ_CRASHREPORTER_DISABLE": "1"}

    def is_ready(self) -> bool:
        return ports.answers(self.port)


class Firefox(Browser):
    """Firefox, through Marionette.

    :param directory: of its own, empty.
    """

    name = "firefox"

    def __init__(self, directory: Path) -> None:
        self._part = _Firefox(directory)
        try:
            self._part.start()
            self._client = Marionette(self._part.port)
        except BaseException:
            self._part.close()
            raise
        self.version = self._client.capabilities["browserVersion"]

    def go(self, url: str) -> None:
        self._client.send("WebDriver:Navigate", url=url)

    def click(self, selector: str) -> None:
        found = self._client.send("WebDriver:FindElement", using="css selector", value=selector)["value"]
        (identifier,) = found.values()
        self._client.send("WebDriver:ElementClick", id=identifier)

    def back(self) -> None:
        self._client.send("WebDriver:Back")

    def forward(self) -> None:
        self._client.send("WebDriver:Forward")

    def _run(self, script: str, *arguments: Any) -> Any:
        return self._client.send("WebDriver:ExecuteAsyncScript", script=script, args=arguments)["value"]

    def close(self) -> None:
        self._client.close()
        self._part.close()


class _ChromeDriver(Part):
    role = "browser"

    def command(self) -> Sequence[str]:
        return [program("chromedriver", "chromium-driver"), f"--port={self.port}"]

    def is_ready(self) -> bool:
        return ports.answers(self.port)


class Chromium(Browser):
    """Chromium, through its driver, which is the parent of its processes.

    :param directory: of its own, empty.
    """

    name = "chromium"

    def __init__(self, directory: Path) -> None:
        options = webdriver.ChromeOptions()
        switches = [*SWITCHES, f"--user-data-dir={directory / 'profile'}"]
        for switch in [*switches, "--no-sandbox"] if os.geteuid() == 0 else switches:  # root cannot have a sandbox
            options.add_argument(switch)
        self._part = _ChromeDriver("chromedriver", directory / "log")
        try:
            self._part.start()
            self._driver = webdriver.Remote(f"http://{self._part.address}", options=options)
        except BaseException:
            self._part.close()
            raise
        self.version = self._driver.capabilities["browserVersion"]

    def go(self, url: str) -> None:
        self._driver.get(url)

    def click(self, selector: str) -> None:
        self._driver.find_element("css selector", selector).click()

    def back(self) -> None:
        self._driver.back()

    def forward(self) -> None:
        self._driver.forward()

    def _run(self, script: str, *arguments: Any) -> Any:
        return self._driver.execute_async_script(script, *arguments)

    def close(self) -> None:
        self._driver.quit()
        self._part.close()
