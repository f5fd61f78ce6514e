"""The report in a browser, at a desk and on a phone, light and dark: it asks for nothing and complains of nothing."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_results import made_up, results_of, with_everything

from browser import Browser, missing
from dvt.report import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=f"no browser: {missing()}"),
]
WINDOWS = {"desk": (1280, 900), "phone": (375, 812)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = results_of(with_everything(made_up()))
    return write_report(results, tmp_path_factory.mktemp("report"))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dark", [False, True])
def test_it_renders(browser: Browser, report: Path, window: str, dark: bool, tmp_path: Path):
    width, height = WINDOWS[window]
    browser.open(report, width, height, dark)
    assert browser.console() == []
    assert browser.requests() == [report.as_uri()]

    images = "[...document.images]"
    assert browser.run(f"return {images}.length") == 1
    assert browser.run(f"return {images}.every(i => i.complete && i.naturalWidth > 0)")
    assert browser.run("return document.documentElement.scrollWidth") <= width  # nothing sticks out
    too_wide = browser.run(f"return {images}.filter(i => i.getBoundingClientRect().right > {width} + 1).length")
    assert too_wide == 0
    smallest = browser.run(
        "return Math.min(...[...document.querySelectorAll('p, td, th, figcaption, caption')]"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 12

    browser.screenshot(tmp_path / "shot.png")
    with Image.open(tmp_path / "shot.png") as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[0] > height and pixels.std() > 10  # long, and not blank
    assert (np.median(pixels) < 60) == dark


def test_every_part_is_there(browser: Browser, report: Path):
    browser.open(report, *WINDOWS["desk"])
    titles = browser.run("return [...document.querySelectorAll('h2')].map(e => e.textContent)")
    assert titles == [
        "Accuracy, cost and speed",
        "Speed and classes",
        "Run, machine and model",
    ]
    assert browser.run("const d = document.querySelector('details'); d.open = true; return d.innerText.length") > 80
