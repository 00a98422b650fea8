"""The web page in a real browser: Debian's Chromium, driven by selenium, against a page that this file serves.

Pictures of what was seen are written where $SCREENSHOT_DIR says (docs/ holds those of the README).
"""

import base64
import dataclasses
import io
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

import app
from config import load_config
from page import ROOT, cents, free_port, hear, save_untrained, sing
from web import transfer_request

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException  # noqa: E402
from selenium.webdriver.chrome.service import Service as Driver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio"),
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="no browser: apt install chromium chromium-driver"),
]
VOICE = 220.0  # Hz, of the microphone
LIMITS = dataclasses.replace(load_config().page, max_seconds=20.0, max_waiting=1)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def server(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page with the shipped trumpet, an untrained guitar and an untrained training."""
    shipped = tmp_path_factory.mktemp("pretrained")
    save_untrained(shipped / "guitar.pth", "guitar")
    for suffix in (".pth", ".md"):
        shutil.copy(ROOT / "checkpoints" / "pretrained" / f"trumpet{suffix}", shipped)
    save_untrained(checkpoints / "latest.pth", "oboe", epoch=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer_request, "PRETRAINED_DIR", shipped)
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("scratch")))
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        page = app.build_ui(checkpoints, "cpu", LIMITS)
        yield app.launch(page, LIMITS, None, free_port())
        page.close(verbose=False)


class Browser:
    """A tab of Chromium, and the words in which the tests below are written."""

    def __init__(self, driver, address: str, downloads: Path) -> None:
        self.driver, self.address, self.downloads = driver, address, downloads

    def open(self, theme: str = "light", width: int = 1280, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(f"{self.address}?__theme={theme}")
        self.wait(lambda: "Play it on" in self.text("#play"))

    def wait(self, condition, seconds: float = 40):
        """Wait until a condition holds; what is redrawn while it is looked at is looked at again."""
        patience = WebDriverWait(self.driver, seconds, 0.1, ignored_exceptions=[StaleElementReferenceException])
        return patience.until(lambda _: condition())

    def find(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """Return the text that can be seen of what may be there."""
        return " ".join(part.text for part in self.driver.find_elements(By.CSS_SELECTOR, selector))

    def seen(self, selector: str) -> bool:
        return any(part.is_displayed() for part in self.driver.find_elements(By.CSS_SELECTOR, selector))

    def click(self, selector: str) -> None:
        self.wait(lambda: self.seen(selector))
        part = next(part for part in self.driver.find_elements(By.CSS_SELECTOR, selector) if part.is_displayed())
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", part)
        part.click()

    def choose(self, instrument: str) -> None:
        self.click(f"#instrument label:has(input[value={instrument}])")
        sound = {"latest": "oboe"}.get(instrument, instrument)
        self.wait(lambda: self.text("#play") == f"Play it on the {sound}")

    def upload(self, path: Path) -> None:
        self.click("#recording [aria-label='Upload file']")
        self.wait(lambda: self.driver.find_elements(By.CSS_SELECTOR, "#recording input[type=file]"))
        self.find("#recording input[type=file]").send_keys(str(path))
        self.wait(lambda: self.driver.find_elements(By.CSS_SELECTOR, "#recording audio, #recording #waveform"))
        self.wait(lambda: not self.seen("#recording .progress, #recording .uploading"))

    def play(self) -> None:
        """Press the button and wait for the end, whatever it is."""
        self.click("#play")
        self.wait(lambda: self.seen("#cancel") or self.seen("#status .error"))
        self.wait(lambda: self.seen("#play"))

    def download(self, selector: str) -> Path:
        """Save a file; those saved before go, as Chromium writes over one of the same name."""
        for path in self.downloads.iterdir():
            path.unlink()
        self.click(selector)
        return self.wait(lambda: [p for p in self.downloads.iterdir() if not p.name.endswith(".crdownload")])[0]

    def photograph(self, name: str) -> None:
        """Keep a picture of the whole page if $SCREENSHOT_DIR is set."""
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = {"captureBeyondViewport": True, "clip": clip}
        png = base64.b64decode(self.driver.execute_cdp_cmd("Page.captureScreenshot", shot)["data"])
        if folder := os.environ.get("SCREENSHOT_DIR"):
            Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(Path(folder) / f"{name}.png", optimize=True)

    def requested(self) -> list[str]:
        """Return all addresses that the page asked for since this was last called."""
        entries = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [entry["params"] for entry in entries if entry["method"] == "Network.requestWillBeSent"]
        return [one["request"]["url"] for one in sent if one.get("documentURL", "").startswith("http")]

    def set_microphone(self, setting: str) -> None:
        wanted = {"permission": {"name": "microphone"}, "setting": setting, "origin": self.address.rstrip("/")}
        self.driver.execute_cdp_cmd("Browser.setPermission", wanted)


def start_chromium(folder: Path, *flags: str):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    fixed = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--mute-audio",
        f"--user-data-dir={folder}",
    )
    for flag in (*fixed, *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    return webdriver.Chrome(options=options, service=Driver(CHROMEDRIVER))


@pytest.fixture(scope="module")
def browser(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("chromium")
    voice = sing(folder / "voice.wav", VOICE, 4.0)
    driver = start_chromium(
        folder / "profile", "--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={voice}"
    )
    (downloads := folder / "downloads").mkdir()
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
    yield Browser(driver, server, downloads)
    driver.quit()


# --- the whole way --------------------------------------------------------------------------------


def test_an_example_becomes_a_trumpet_that_can_be_saved(browser: Browser) -> None:
    browser.open()
    assert browser.find("#instrument input:checked").get_attribute("value") == "trumpet"
    assert "Oboe, latest (epoch 7" in browser.text("#instrument")
    assert "CPU" in browser.text(".foot")
    browser.photograph("start")
    browser.click("#examples button")
    browser.choose("trumpet")
    browser.play()
    browser.wait(lambda: browser.seen(".picture.in-light img"))
    assert browser.seen("#played") and browser.seen("#heard") and not browser.seen(".picture.in-dark img")
    assert browser.text("#report").startswith("Shifted +0 st")
    assert not browser.seen("#warning .warning")
    sound = browser.download(".downloads button:nth-of-type(1), .downloads a:nth-of-type(1)")
    assert sound.name == "hum_trumpet.wav"
    assert cents(hear(sound), hear(ROOT / "examples" / "hum.wav")) < 25
    browser.photograph("desktop_light")


def test_the_pictures_have_words(browser: Browser) -> None:
    browser.wait(lambda: browser.find(".picture.in-light img").get_attribute("alt"))
    assert "pitch" in browser.find(".picture.in-light img").get_attribute("alt")


def test_nothing_was_asked_of_the_outside(browser: Browser) -> None:
    addresses = browser.requested()
    assert sum(address.startswith(browser.address) for address in addresses) > 20
    own = (browser.address, "data:", f"blob:{browser.address}")
    assert [address for address in addresses if not address.startswith(own)] == []


def test_nothing_is_wrong_in_the_console(browser: Browser) -> None:
    assert [entry["message"] for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_how_it_works_shows_the_card_of_the_chosen_one(browser: Browser) -> None:
    browser.driver.execute_script(
        "[...document.querySelectorAll('[role=tab]')].find(tab => tab.innerText.includes('How')).click()"
    )
    browser.wait(lambda: browser.seen("#card h1"))
    assert "Trumpet" in browser.text("#card h1") and "Licence of the training data" in browser.text("#card")
    assert browser.seen(".flow") and browser.find(".flow").get_attribute("aria-label")
    browser.photograph("how_it_works")


def test_the_microphone_is_recorded_and_played(browser: Browser) -> None:
    browser.set_microphone("granted")
    browser.open(theme="dark")
    browser.choose("trumpet")
    browser.click("#recording .record-button")
    browser.wait(lambda: browser.seen("#recording .stop-button"))
    time.sleep(2.5)  # of singing
    browser.click("#recording .stop-button")
    browser.wait(lambda: browser.seen("#recording .play-pause-button"))
    browser.play()
    browser.wait(lambda: browser.seen(".picture.in-dark img"))
    assert not browser.seen(".picture.in-light img")
    octaves = np.log2(hear(browser.download(".downloads button:nth-of-type(1), .downloads a:nth-of-type(1)")) / VOICE)
    assert abs(octaves - round(octaves)) < 0.02
    browser.photograph("desktop_dark")


def test_a_refused_microphone_is_one_sentence(browser: Browser) -> None:
    browser.set_microphone("denied")
    browser.open()
    browser.click("#recording .record-button")
    browser.wait(lambda: "keeps the microphone from me" in browser.text("#microphone"))
    assert browser.find("#microphone").get_attribute("role") == "alert"


def test_the_sample_rate_is_chosen_from_a_menu(browser: Browser) -> None:
    browser.open()
    browser.click("#examples button")
    browser.choose("trumpet")
    browser.click("#tuning button")
    browser.click("#rate input")
    browser.click("[role=option][aria-label='48 kHz']")
    browser.play()
    sound = browser.download(".downloads button:nth-of-type(1), .downloads a:nth-of-type(1)")
    assert soundfile.info(sound).samplerate == 48000
    separators = browser.driver.find_elements(By.CSS_SELECTOR, "footer .divider")  # a phone showed one before nothing
    assert not any(part.is_displayed() for part in separators)


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_text_file_is_one_friendly_sentence(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("do re mi")
    browser.open()
    browser.upload(tmp_path / "notes.wav")
    browser.play()
    assert "This is not a sound file that I can read" in browser.text("#status .error")
    assert browser.find("#status [role=status]")
    assert browser.seen("#play") and not browser.seen("#results")
    browser.photograph("error")


def test_cancel_stops_and_the_next_request_works(browser: Browser, tmp_path: Path, monkeypatch) -> None:
    release = threading.Event()
    transfer = transfer_request.transfer

    def slow_transfer(*arguments):
        release.wait(30)
        return transfer(*arguments)

    browser.open(width=390, height=844)
    browser.click("#examples button")
    browser.choose("trumpet")
    with monkeypatch.context() as patch:
        patch.setattr(transfer_request, "transfer", slow_transfer)
        browser.click("#play")
        browser.wait(
            lambda: (
                "Playing your melody" in browser.text("#status .now, #status [aria-current=step]")
                or "Listening" in browser.text("#status [aria-current=step]")
            )
        )
        browser.wait(lambda: browser.driver.switch_to.active_element.get_attribute("id") == "cancel")
        for _ in range(5):  # the page may move under a click
            if browser.seen("#cancel"):
                browser.click("#cancel")
            try:
                browser.wait(lambda: "Cancelled" in browser.text("#status"), seconds=8)
                break
            except TimeoutException:
                continue
        time.sleep(1)  # what is cancelled fails too, and nobody is to hear of it
        assert "Cancelled" in browser.text("#status")
        release.set()
    assert browser.seen("#play") and not browser.seen("#results")
    browser.play()
    browser.wait(lambda: browser.seen(".picture.in-light img"))
    browser.photograph("phone")


def test_the_phone_page_is_no_wider_than_the_phone(browser: Browser) -> None:
    right = "document.querySelector('#results').getBoundingClientRect().right"
    for width in ("document.documentElement.scrollWidth", right):
        assert browser.driver.execute_script(f"return {width}") <= 390


def test_place_in_line_and_a_polite_refusal(server: str, browser: Browser, tmp_path: Path, monkeypatch) -> None:
    release = threading.Event()
    transfer = transfer_request.transfer
    monkeypatch.setattr(transfer_request, "transfer", lambda *a: (release.wait(60), transfer(*a))[1])
    voice = sing(tmp_path / "voice.wav", VOICE)
    tabs = [browser.driver.current_window_handle]
    try:
        for number in range(3):  # one is played, one waits, one is turned away
            if number:
                browser.driver.switch_to.new_window("tab")
                tabs.append(browser.driver.current_window_handle)
            browser.open()
            browser.upload(voice)
            browser.click("#play")
            expected = ("#status .steps", "#status .progress-text", "#status .error")[number]
            browser.wait(lambda expected=expected: browser.seen(expected) and browser.text(expected).strip())
            if number == 1:
                browser.wait(lambda: "queue" in browser.text("#status").lower())
        assert "Too many people are playing" in browser.text("#status .error") and browser.seen("#play")
    finally:
        release.set()
    for tab in tabs[:2]:
        browser.driver.switch_to.window(tab)
        browser.wait(lambda: browser.seen("#played"))
    for tab in tabs[1:]:
        browser.driver.switch_to.window(tab)
        browser.driver.close()
    browser.driver.switch_to.window(tabs[0])


# --- keyboard and refresh -------------------------------------------------------------------------


def test_it_can_be_used_by_the_keyboard_alone(browser: Browser) -> None:
    browser.open()
    reached, keys = [], webdriver.ActionChains(browser.driver)
    for _ in range(30):
        keys.send_keys(Keys.TAB).perform()
        active = browser.driver.switch_to.active_element
        reached.append(active.get_attribute("id") or active.get_attribute("type") or active.text)
        if reached[-1] == "play":
            break
    assert "radio" in reached and reached[-1] == "play"
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    browser.wait(lambda: "There is no recording yet" in browser.text("#status"))


def test_everything_that_is_operated_has_a_name(browser: Browser) -> None:
    nameless = browser.driver.execute_script(
        "return [...document.querySelectorAll('button, input, select, [role=slider]')]"
        ".filter(part => part.offsetParent && part.type !== 'file' && !(part.innerText || part.ariaLabel || part.title"
        " || part.labels?.length || part.getAttribute('aria-labelledby'))).map(part => part.outerHTML.slice(0, 200))"
    )
    assert nameless == []


def test_refresh_finds_a_training_that_was_just_saved(browser: Browser, checkpoints: Path) -> None:
    browser.open()
    save_untrained(checkpoints / "latest.pth", "tuba", epoch=8)
    browser.click("#instrument .custom-button")
    browser.wait(lambda: "Tuba, latest (epoch 8" in browser.text("#instrument"))
