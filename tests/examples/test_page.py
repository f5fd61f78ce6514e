"""The page in a browser: an image dropped on it, at a desk and on a phone, light and dark."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from service import Service, photographs

from browser import Browser, missing

for name in ("fastapi", "uvicorn", "prometheus_client", "onnxruntime"):
    pytest.importorskip(name, reason=f"{name} is not installed: pip install -r requirements-serve.txt")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=f"no browser: {missing()}"),
]


@pytest.fixture(scope="module")
def service(service_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(service_bundle, tmp_path_factory.mktemp("log") / "log") as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as started:
        yield started


def wait_for(browser: Browser, condition: str) -> None:
    for _ in range(100):
        if browser.run(f"return {condition}"):
            return
        time.sleep(0.05)
    pytest.fail(f"{condition} did not come true within 5 seconds")


@pytest.mark.parametrize(("width", "height", "dark"), [(1280, 900, False), (1280, 900, True), (375, 812, False)])
def test_a_dropped_image_shows_its_exit(
    browser: Browser, service: Service, width: int, height: int, dark: bool, tmp_path: Path
):
    browser.console(), browser.requests()
    browser.open(service.address, width, height, dark)
    wait_for(browser, "document.querySelector('#drop').dataset.ready")
    (tmp_path / "photo.png").write_bytes(photographs(1)[0])
    (tmp_path / "text.png").write_text("not an image")

    browser.drop(tmp_path / "photo.png", "#drop")
    wait_for(browser, "document.querySelector('.taken')")
    expected = service.ask(photographs(1)[0]).content
    assert browser.run("return document.querySelector('.taken').textContent") == f"exit {expected['exit']}"
    assert browser.run("return document.querySelector('.label').textContent").startswith(expected["label"])
    assert browser.run("return document.querySelector('#results img').naturalWidth") > 0
    assert browser.console() == []

    browser.run("setting.value = 'own thresholds'; setting.dispatchEvent(new Event('change'))")
    browser.run("document.querySelectorAll('#own input').forEach(input => input.value = 1.01)")
    browser.drop(tmp_path / "photo.png", "#drop")
    wait_for(browser, "document.querySelectorAll('.taken').length === 2")
    assert browser.run("return document.querySelector('.taken').textContent") == "exit 3"
    assert "2 images on this page" in browser.run("return document.querySelector('#shares').textContent")

    browser.drop(tmp_path / "text.png", "h1")  # beside the field
    wait_for(browser, "document.querySelector('.error')")
    assert "cannot be read" in browser.run("return document.querySelector('.error').textContent")
    assert browser.run("return location.pathname") == "/"

    assert browser.run("return document.documentElement.scrollWidth") <= width  # nothing sticks out
    assert all(url.startswith((service.address, "blob:")) for url in browser.requests())
    browser.screenshot(tmp_path / "shot.png")
    with Image.open(tmp_path / "shot.png") as image:
        pixels = np.asarray(image.convert("L"))
    assert (np.median(pixels) < 60) == dark
