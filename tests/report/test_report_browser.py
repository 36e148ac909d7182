"""The report in a real browser: what no reading of the file can tell."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limbeck.report import render_report

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver on the PATH")

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--lang=en-US",
)
PHONE, DESK = (390, 844), (1440, 900)

# Of every element with text of its own: its contrast to the nearest opaque background, by WCAG 2's formula.
CONTRASTS = """
const channels = colour => colour.match(/[\\d.]+/g).map(Number);
const luminance = ([r, g, b]) => [r, g, b]
  .map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const background = element => {
  for (let e = element; e; e = e.parentElement) {
    const [r, g, b, alpha = 1] = channels(getComputedStyle(e).backgroundColor);
    if (alpha === 1) return [r, g, b];
  }
};
return [...document.querySelectorAll('body *')]
  .filter(e => e.tagName.toLowerCase() !== 'title')
  .filter(e => [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim()))
  .map(e => {
    const style = getComputedStyle(e);
    const ink = channels(e instanceof SVGElement ? style.fill : style.color);
    const [low, high] = [luminance(ink), luminance(background(e))].sort((a, b) => a - b);
    return [(high + 0.05) / (low + 0.05), e.tagName.toLowerCase(), e.textContent.trim().slice(0, 40)];
  });
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(CHROMEDRIVER, env=os.environ | {"LANG": "en_US.UTF-8"})
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, make_data: Any, make_accuracies: Any) -> dict[str, Path]:
    """The reports to open: a usual one, one with next to nothing, and one where everything is long."""
    folder = tmp_path_factory.mktemp("reports")
    long_name = "a-task-with-a-name-without-any-space-" * 4
    fractions = (0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
    several = make_accuracies() + make_accuracies(
        {"distilled": [0.4 + 0.05 * i for i in range(9)], "random": [0.5] * 9},
        task=long_name,
        fractions=fractions,
    )
    runs = {
        "usual": make_data(),
        "bare": make_data(accuracies=[], iterations=0, from_noise=True, real=0, stages=[], links={}, spec={}),
        "long": make_data(
            images=60,
            size=224,
            name=long_name,
            device=long_name,
            accuracies=several,
            source={
                "uri": f"s3://{long_name * 3}",
                "skipped": {f"{long_name}{i}.jpg": long_name for i in range(12)},
            },
            links={long_name: f"https://{long_name}.test/{long_name}"},
            spec={"spec": {long_name: long_name * 4}},
        ),
    }
    paths = {}
    for name, data in runs.items():
        paths[name] = folder / f"{name}.html"
        paths[name].write_text(render_report(data), encoding="utf-8")
    return paths


def view(browser: Any, report: Path, size: tuple[int, int], mode: str) -> None:
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": mode}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(report.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("name", ["usual", "bare", "long"])
def test_the_page_fits_loads_whole_and_can_be_read(
    browser: Any, reports: dict[str, Path], name: str, size: tuple[int, int], mode: str
) -> None:
    view(browser, reports[name], size, mode)

    assert browser.get_log("browser") == []
    scroll_width, client_width = browser.execute_script(
        "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
    )
    assert scroll_width <= client_width
    assert abs(client_width - size[0]) <= 20  # a scroll bar

    loaded = browser.execute_script("return [...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert loaded
    assert all(loaded)

    contrasts = browser.execute_script(CONTRASTS)
    assert {"p", "h1", "dd"} <= {tag for _, tag, _ in contrasts}
    if name != "bare":
        assert {"td", "th", "text", "code"} <= {tag for _, tag, _ in contrasts}
    assert min(contrasts)[0] >= 4.5, min(contrasts)


def test_light_and_dark_mode_differ_in_background_ink_and_charts(browser: Any, reports: dict[str, Path]) -> None:
    seen = {}
    for mode in ("light", "dark"):
        view(browser, reports["usual"], PHONE, mode)
        seen[mode] = browser.execute_script(
            "const style = selector => getComputedStyle(document.querySelector(selector));"
            "return [style('body').backgroundColor, style('body').color, style('svg text').fill,"
            "        style('svg [style*=\"--distilled\"]').stroke]"
        )
    assert all(light != dark for light, dark in zip(seen["light"], seen["dark"], strict=True))


def test_a_wide_table_scrolls_within_its_own_container_and_keeps_its_first_column(
    browser: Any, reports: dict[str, Path]
) -> None:
    view(browser, reports["long"], PHONE, "light")
    scrolled, left = browser.execute_script(
        "const wide = [...document.querySelectorAll('.scroll')]"
        "  .find(container => container.scrollWidth > container.clientWidth + 100);"
        "wide.scrollLeft = 100;"
        "return [wide.scrollLeft, wide.querySelector('tbody th').getBoundingClientRect().left"
        "        - wide.getBoundingClientRect().left]"
    )
    assert scrolled == 100
    assert left == pytest.approx(0, abs=1)


def test_the_differences_and_four_label_fractions_fit_a_phone_without_scrolling(
    browser: Any, reports: dict[str, Path]
) -> None:
    view(browser, reports["usual"], PHONE, "light")
    overflow = "return ['.narrow', '.accuracy'].map(t => document.querySelector(t).parentElement)"
    overflow += ".map(s => s.scrollWidth - s.clientWidth)"
    assert max(browser.execute_script(overflow)) <= 0


def test_chart_text_is_large_enough_on_a_phone_and_stays_within_the_page(
    browser: Any, reports: dict[str, Path]
) -> None:
    view(browser, reports["usual"], PHONE, "light")
    texts = browser.execute_script(
        "return [...document.querySelectorAll('svg text')].map(t => {"
        "  const box = t.getBoundingClientRect();"
        "  return [parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a, box.left, box.right]})"
    )
    assert min(size for size, _, _ in texts) >= 11
    assert min(left for _, left, _ in texts) >= 0
    assert max(right for _, _, right in texts) <= PHONE[0]


def test_chart_labels_do_not_overlap(browser: Any, reports: dict[str, Path]) -> None:
    view(browser, reports["usual"], PHONE, "light")
    overlapping = browser.execute_script(
        "const leading = 3;"
        "const apart = (p, q) => p.right <= q.left || q.right <= p.left"
        "  || p.bottom <= q.top + leading || q.bottom <= p.top + leading;"
        "return [...document.querySelectorAll('svg')].flatMap(svg => {"
        "  const texts = [...svg.querySelectorAll('text')]"
        "    .map(t => [t.textContent, t.getBoundingClientRect()]);"
        "  return texts.flatMap(([a, p], i) =>"
        "    texts.slice(i + 1).filter(([_, q]) => !apart(p, q)).map(([b]) => [a, b]))})"
    )
    assert overlapping == []


@pytest.mark.parametrize(("name", "factor"), [("usual", 8), ("long", 1)])
def test_pictures_are_enlarged_without_blur_by_a_whole_factor_and_large_ones_shrunk_beforehand(
    browser: Any, reports: dict[str, Path], name: str, factor: int
) -> None:
    view(browser, reports[name], PHONE, "light")
    shown = browser.execute_script(
        "return [...document.images].map(i => [i.width / i.naturalWidth, getComputedStyle(i).imageRendering])"
    )
    assert {(factor, "pixelated")} == {tuple(picture) for picture in shown}
