"""MLflow's own pages in a real browser: what a team that lives there finds.

With LIMBECK_SCREENSHOTS set, the pages are kept in that folder.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stages.tiny import finished  # noqa: F401 - a fixture
from tests.tracking.tracked import copy_of, run_tracked

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver on the PATH")

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
PATIENCE = 60.0


class Pages:
    """MLflow's interface, page after page."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def open(self, url: str, *expected: str) -> str:
        """The text of a page once all that is expected is on it."""
        self._driver.get("about:blank")
        self._driver.get(url)
        closed = False
        deadline, text = time.monotonic() + PATIENCE, ""
        while time.monotonic() < deadline:
            closed = closed or self._close_assistant()
            text = self._driver.execute_script("return document.body ? document.body.innerText : ''")
            if all(phrase in text for phrase in expected):
                return text
            time.sleep(0.3)
        missing = [phrase for phrase in expected if phrase not in text]
        raise AssertionError(f"{url} lacks {missing}; it says:\n{text[:3000]}")

    def _close_assistant(self) -> bool:
        """It takes a third of the page."""
        script = "const b = document.querySelector('button[aria-label=\"Close\"]'); if (b) b.click(); return !!b;"
        return bool(self._driver.execute_script(script))

    def keep(self, name: str) -> None:
        """A screenshot, where somebody wants it."""
        folder = os.environ.get("LIMBECK_SCREENSHOTS")
        if folder:
            time.sleep(2.0)  # animations
            self._driver.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[Pages]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, "--lang=en-US", "--window-size=1440,1000", f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    locale = {"LANG": "en_US.UTF-8", "LC_ALL": "en_US.UTF-8", "LANGUAGE": "en_US"}
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER, env=os.environ | locale))
    yield Pages(driver)
    driver.quit()


def test_the_pages_of_a_run_and_of_its_version(server, tmp_path, finished, pages):  # noqa: F811
    name = f"digits-{uuid.uuid4().hex[:8]}"
    output = copy_of(finished, tmp_path / "out")
    summary = run_tracked(output, server.uri, {"tracking.experiment": name, "registry.name": name})
    run, view = summary.links["mlflow"].split("?")
    metric = "accuracy/digits/convnet/distilled/0.1"
    pages.open(f"{run}?{view}", "Model registry", metric, "distill.innerSteps", "Real", "limbeck.source_fingerprint")
    pages.keep("run")
    pages.open(f"{run}/artifacts?{view}", "report.html", "summary.json", "spec.yaml")
    pages.open(
        f"{server.uri}/#/models/{name}/versions/1?{view}", "champion", "10 synthetic images of 8x8 pixels", "Lineage"
    )
    pages.keep("version")
    version = server.client.get_model_version_by_alias(name, "champion")
    model = version.source.removeprefix("models:/")
    experiment = server.client.get_experiment_by_name(name).experiment_id
    place = f"{server.uri}/#/experiments/{experiment}/models/{model}"
    pages.open(f"{place}?{view}", metric, "test digits", "targetDimension", "Recipe")
    pages.keep("model")
    pages.open(f"{place}/artifacts?{view}", "README.md", "preview.png", "distilled.safetensors")
