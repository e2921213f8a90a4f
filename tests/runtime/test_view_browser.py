"""The page as a person uses it, in headless Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import Any

import cv2
import pytest

from glmd_runtime import Detector, backends
from glmd_runtime.detections import Detections
from glmd_runtime.draw import draw
from glmd_runtime.pipeline import Pipeline
from glmd_runtime.video.source import Source
from glmd_runtime.view import View
from glmd_runtime.web.listen import Address
from tests.conftest import skip_unless
from tests.runtime.streams import Camera, detector, frame

SOON = 20.0  # seconds; far above what anything here needs, on any machine
ROOT = Path(__file__).parents[2]
HERE = Address("127.0.0.1", 0)
EVIL = "<img src=x onerror=document.title='evil'>"


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads: Path) -> Iterator[Any]:
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    present = bool(binary and driver and find_spec("selenium"))
    skip_unless(present, "chromium", "chromium, chromium-driver or selenium is not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(binary)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = webdriver.Chrome(options=options, service=Service(driver))
    yield chromium
    chromium.quit()


class Page:
    """A running pipeline of cameras, and a browser that looks at it."""

    def __init__(
        self, browser: Any, cameras: list[Camera], one: Detector, address: Address = HERE,
        *, token: str | None = None, **pipeline: Any,
    ) -> None:
        self.browser, self.cameras, self.detector = browser, cameras, one
        self.pipeline = Pipeline(cameras, one, on_result=lambda r: self.view.publish(r), staleness=1e6, **pipeline)
        self.view = View(self.pipeline.streams, one, address, token)
        self.thread = Thread(target=self.pipeline.run, daemon=True)
        self.thread.start()

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, width: int = 1280, height: int = 800, sharp: int = 1) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": sharp, "mobile": width < 600}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.browser.get(self.view.url)

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return str(self.browser.execute_script("return document.querySelector(arguments[0]).textContent", selector))

    def brightness(self) -> float:
        """Mean of the canvas, 0..255; 0 where there is none."""
        script = """const c = document.getElementById("picture");
            if (!c.width || !c.offsetParent) return 0;
            const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
            let sum = 0; for (let i = 0; i < d.length; i += 4) sum += d[i]; return 4 * sum / d.length;"""
        return float(self.browser.execute_script(script))

    def close(self) -> None:
        self.browser.get("about:blank")
        self.pipeline.stop()
        self.thread.join(SOON)
        self.pipeline.close()
        if not self.view.closed:
            self.view.close()


def becomes(wanted: Any, what: Callable[[], Any], soon: float = SOON) -> None:
    until = monotonic() + soon
    while (came := what()) != wanted:
        assert monotonic() < until, f"expected {wanted!r}, got {came!r}"
        sleep(0.05)


@pytest.fixture
def page(browser: Any, tiny_bundle: Path) -> Iterator[Page]:
    one = Page(browser, [Camera("yard", [frame(0)]), Camera(EVIL)], detector(tiny_bundle))
    one.open()
    yield one
    said = [entry["message"] for entry in browser.get_log("browser")]
    one.close()
    assert said == []  # neither errors of ours nor what the page may not do


def test_the_picture_with_all_that_is_known(page: Page) -> None:
    becomes("2", lambda: page.text("#count"))
    assert page.text("#detections li") == "person35.0 °C0.90"
    assert page.text("#model") == "tiny" and page.text("#caption") == "frame 0 · 0.0 s"
    assert page.brightness() > 30 and not page.find("#veil").is_displayed()
    page.cameras[0].feed(frame(1))
    becomes("frame 1 · 0.0 s", lambda: page.text("#caption"))


def test_the_slider_acts_at_once_and_on_the_detector(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    becomes("2", lambda: page.text("#count"))
    assert page.text("#threshold-value") == "model's own, 0.10 to 0.20"
    for _ in range(40):  # from 0.15, between the two, to 0.55, by one hundredth a key
        page.find("#threshold").send_keys(Keys.ARROW_RIGHT)
    becomes(0.55, lambda: page.detector.score_threshold)
    becomes("1", lambda: page.text("#count"))  # of the same frame
    assert page.text("#threshold-value") == "0.55"
    page.cameras[0].feed(frame(1))
    becomes("frame 1 · 0.0 s", lambda: page.text("#caption"))
    assert page.text("#count") == "1"
    becomes(True, page.find("#own").is_enabled)
    page.find("#own").click()
    becomes(None, lambda: page.detector.score_threshold)
    becomes("model's own, 0.10 to 0.20", lambda: page.text("#threshold-value"))
    assert page.find("#threshold").get_attribute("value") == "0.15"
    page.cameras[0].feed(frame(2))
    becomes("2", lambda: page.text("#count"))


def test_the_snapshot_is_downloaded(page: Page, downloads: Path) -> None:
    becomes("2", lambda: page.text("#count"))
    becomes(True, page.find("#snapshot").is_enabled)
    page.find("#snapshot").click()
    becomes(["yard-0.png"], lambda: [path.name for path in downloads.iterdir()])
    picture = cv2.imread(str(downloads / "yard-0.png"))
    expected = draw(frame(0).image, Detections.empty(("person",)))
    assert picture.shape == expected.shape and (picture != expected).any()


def test_a_lost_camera_is_said_to_be_lost_and_is_not_black(page: Page) -> None:
    becomes("2", lambda: page.text("#count"))
    page.cameras[0].lose("timeout; again in 4 s")
    becomes(True, page.find("#veil").is_displayed)
    assert page.text("#veil-title").startswith("Lost for ") and page.text("#veil-text") == "timeout; again in 4 s"
    assert page.text(".source small").startswith("lost ")
    assert page.brightness() > 30
    page.cameras[0].feed(frame(1))  # it comes back
    becomes(False, page.find("#veil").is_displayed)
    becomes("frame 1 · 0.0 s", lambda: page.text("#caption"))


def test_another_source_is_chosen(page: Page) -> None:
    becomes("2", lambda: page.text("#count"))
    second = ".source:nth-child(2)"
    becomes(1, lambda: len(page.browser.find_elements("css selector", second)))  # it may come after the picture
    row = page.find(second)
    assert EVIL in row.text
    row.click()
    becomes("Connecting", lambda: page.text("#veil-title"))
    assert page.text("#count") == "0" and not page.find("#picture").is_displayed()
    page.cameras[1].feed(frame(7))
    becomes("frame 7 · 0.3 s", lambda: page.text("#caption"))
    assert page.find("#picture").is_displayed() and page.browser.title.startswith(EVIL)


def test_the_end_of_glmd_run_is_said(browser: Any, tiny_bundle: Path) -> None:
    with Page(browser, [Camera("yard", [frame(0)])], detector(tiny_bundle)) as page:
        page.open()
        becomes("2", lambda: page.text("#count"))
        page.view.close()
        becomes(True, page.find("#connection").is_displayed)
    browser.get_log("browser")  # it says that nobody answered


class Mail(BaseHTTPRequestHandler):
    """A page of another site with a link."""

    link = ""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(f"<a href='{self.link}'>the page</a>".encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_the_address_with_the_token_is_clicked_elsewhere(browser: Any, tiny_bundle: Path) -> None:
    with (
        Page(browser, [Camera("yard", [frame(0)])], detector(tiny_bundle), token="correct horse battery") as page,
        HTTPServer(("127.0.0.1", 0), Mail) as mail,
    ):
        Mail.link = f"{page.view.url}?token=correct+horse+battery"
        Thread(target=mail.serve_forever, daemon=True).start()
        browser.get(f"http://localhost:{mail.server_port}/")
        page.find("a").click()
        becomes("2", lambda: page.text("#count"))
        assert browser.current_url == page.view.url
        mail.shutdown()
    browser.delete_all_cookies()
    browser.get_log("browser")


def test_a_page_that_stays_open_follows_glmd_run_when_it_is_started_again(browser: Any, tiny_bundle: Path) -> None:
    many = [frame(i) for i in range(9)]
    with Page(browser, [Camera("yard", many)], detector(tiny_bundle), policy="every") as first:
        first.open()
        becomes("frame 8 · 0.3 s", lambda: first.text("#caption"))
        first.view.close()
        again = Page(browser, [Camera("yard")], detector(tiny_bundle), Address("127.0.0.1", first.view.port))
        with again as second:
            becomes("", lambda: second.text("#caption"))  # the picture of before is not taken for a live one
            becomes("Connecting", lambda: second.text("#veil-title"))
            second.cameras[0].feed(frame(0))
            becomes("frame 0 · 0.0 s", lambda: second.text("#caption"))
            assert not second.find("#connection").is_displayed()
    browser.get_log("browser")  # it says that nobody answered in between


def test_a_page_that_stays_open_says_that_a_token_is_wanted_now(browser: Any, tiny_bundle: Path) -> None:
    with Page(browser, [Camera("yard", [frame(0)])], detector(tiny_bundle)) as first:
        first.open()
        becomes("2", lambda: first.text("#count"))
        first.view.close()
        becomes("No answer from glmd-run", lambda: first.text("#connection"))
        address, token = Address("127.0.0.1", first.view.port), "correct horse battery"
        with Page(browser, [Camera("yard")], detector(tiny_bundle), address, token=token) as second:
            becomes("glmd-run wants its token: open its new address", lambda: second.text("#connection"))
            assert second.find("#connection").is_displayed()
            assert "stale" in second.find("#stage").get_attribute("class")
    browser.get_log("browser")


def test_a_source_that_is_no_more_is_left(browser: Any, tiny_bundle: Path) -> None:
    with Page(browser, [Camera("yard"), Camera("gate", [frame(0)])], detector(tiny_bundle)) as first:
        first.open()
        becomes(2, lambda: len(first.browser.find_elements("css selector", ".source")))
        first.find(".source:nth-child(2)").click()
        becomes("2", lambda: first.text("#count"))
        first.view.close()
        address = Address("127.0.0.1", first.view.port)
        with Page(browser, [Camera("yard", [frame(5)])], detector(tiny_bundle), address) as second:
            becomes("frame 5 · 0.2 s", lambda: second.text("#caption"))
            becomes(1, lambda: len(second.browser.find_elements("css selector", ".source")))
    browser.get_log("browser")


@pytest.mark.parametrize(("width", "height", "sharp"), [(1280, 800, 1), (390, 844, 3)])
def test_everything_is_on_the_screen(width: int, height: int, sharp: int, page: Page) -> None:
    page.open(width, height, sharp)
    becomes("2", lambda: page.text("#count"))
    script = "return [document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    right, bottom = page.browser.execute_script(script)
    assert right <= width and (bottom <= height or width < 600)
    for selector in ("#picture", "#threshold", "#snapshot", "#rate"):
        box = page.find(selector).rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["width"] > 20
    assert page.find("#picture").rect["width"] > 0.65 * min(width, height)


def test_the_picture_of_the_readme(browser: Any, tmp_path: Path) -> None:
    """What the shipped model sees of a simulated camera, beside one that is lost. GLMD_VIEW_PNG says where to."""
    skip_unless(bool(backends.available()), "onnxruntime", "no inference library is installed")
    skip_unless(find_spec("trackers") is not None, "trackers", "the package trackers is not installed")
    from glmd_runtime.tracking import Tracker
    from glmd_runtime.video.simulator import parse_sim_uri, simulate

    out = Path(os.environ.get("GLMD_VIEW_PNG", tmp_path / "view.png"))
    frames = list(simulate(parse_sim_uri("sim://ground?seed=11&frames=24&fps=9")))
    cameras = [Camera("sim://ground?seed=11"), Camera("rtsp://10.0.0.7/gate")]
    cameras[1].lose("connection refused; again in 8.0 s")

    def tracker(source: Source) -> Tracker:
        return Tracker("bytetrack", fps=9)

    with (
        Detector(ROOT / "models/thermal_lite0.glmd", threads=1) as one,
        Page(browser, cameras, one, tracker=tracker, policy="every") as page,
    ):
        page.open()
        began = monotonic()
        for one_frame in frames:  # as a camera of 9 Hz would give them
            sleep(max(0.0, began + one_frame.time - monotonic()))
            cameras[0].feed(replace(one_frame, captured=monotonic()))
        caption = f"frame {frames[-1].index} · {frames[-1].time:.1f} s"
        becomes(caption, lambda: page.text("#caption"), soon=60)
        assert int(page.text("#count")) > 0 and "#" in page.text("#detections")
        becomes("lost", lambda: page.text(".source:nth-child(2) small").split()[0])
        page.browser.save_screenshot(str(out))
    picture = cv2.imread(str(out))
    assert picture.shape == (800, 1280, 3) and picture.std() > 20
