"""The live page in a real browser: its Worker equals the Python graph, it plays the microphone, and it recovers.

A small instrument, one browser and one server for all; other sites are never requested.
"""

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import uvicorn
from starlette.responses import PlainTextResponse

from checkpoint import load_model, make_checkpoint, save_checkpoint
from config import load_config
from conftest import melody, shrink
from get_live_runtime import read_pins
from model import build_model
from page import free_port, sing
from playing.live_graph import SHOWN, LiveGraph
from web import live_page, transfer_request
from web.file_guard import OwnPageOnly

test_browser = pytest.importorskip("test_browser")
By, Keys = test_browser.By, test_browser.Keys
VENDOR = live_page.PAGE_DIR / "vendor"
pytestmark = [
    *test_browser.pytestmark,
    pytest.mark.skipif(
        not all((VENDOR / name).is_file() for name in read_pins()[1]),
        reason="web/live/vendor is empty: ./venv/bin/python scripts/get_live_runtime.py",
    ),
]
VOICE = 220.0  # Hz, of the microphone


class Server:
    """The live page behind the request filter of the web page, without Gradio.

    ``hidden`` is what is not there at the moment, ``policy`` is what the browser is told to refuse.
    """

    def __init__(self, folder: Path) -> None:
        self.hidden, self.policy, self.port = "", "", free_port()
        collection = transfer_request.ModelCollection(folder, torch.device("cpu"))
        app = OwnPageOnly(live_page.LivePage(PlainTextResponse("elsewhere", 404), collection), True, load_config().page)

        async def hide(scope, receive, send) -> None:
            if scope["type"] == "http" and self.hidden and self.hidden in scope["path"]:
                app_here = PlainTextResponse("hidden", 404)
            else:
                app_here = app

            async def send_policy(message) -> None:
                if self.policy and message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"content-security-policy", self.policy.encode())]
                await send(message)

            await app_here(scope, receive, send_policy)

        self.server = uvicorn.Server(uvicorn.Config(hide, port=self.port, log_level="error", lifespan="off"))
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> "Server":
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_) -> None:
        self.server.should_exit = True
        self.thread.join()


class Page:
    """The page in the browser."""

    def __init__(self, driver, server: Server) -> None:
        self.driver, self.server = driver, server
        self.browser = test_browser.Browser(driver, f"http://127.0.0.1:{server.port}/", Path())

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: str, seconds: float = 90):
        return self.browser.wait(lambda: self.run(f"return {condition}"), seconds)

    def open(self) -> None:
        self.driver.get(f"{self.browser.address}live")
        self.wait("live.instruments.length > 0 && !document.getElementById('start').disabled")

    def start(self) -> None:
        """Press Start, and wait until it sounds."""
        self.browser.click("#start")
        self.wait("live.state === 'playing' && live.frames > 100 && live.report.soundPeak > 0.001")

    def complaint(self) -> str:
        return self.browser.text("#message.error")

    def is_refused(self, words: str) -> None:
        """Press Start, and wait for the message of a failure."""
        self.browser.click("#start")
        self.browser.wait(lambda: words in self.complaint())
        assert self.run("return live.state") == "idle"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = shrink(load_config(preset="solo"))
    changes = {"embed_size": 8, "projection_size": 16, "noise_bias": -3.0}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))
    statistics = {
        "f0_quantiles": np.geomspace(200, 800, 101).tolist(),
        "loudness_quantiles": np.linspace(-45, -15, 101).tolist(),
    }
    path = tmp_path_factory.mktemp("pretrained") / "trumpet.pth"
    model = build_model(config, "trumpet").state_dict()
    save_checkpoint(path, make_checkpoint(config, "trumpet", model=model, statistics=statistics))
    return path


@pytest.fixture(scope="module")
def page(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("live")
    voice = sing(folder / "voice.wav", VOICE, 2.0)
    with pytest.MonkeyPatch.context() as patch, Server(folder) as server:
        patch.setattr(transfer_request, "PRETRAINED_DIR", checkpoint.parent)
        patch.setattr(live_page, "CACHE", folder / "cache")
        graph = live_page.cached_live_graph(checkpoint, live_page.CACHE)
        assert live_page.cached_live_graph(checkpoint, live_page.CACHE) == graph
        driver = test_browser.start_chromium(
            folder / "profile",
            "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-audio-capture={voice}",
            "--host-resolver-rules=MAP studio.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        )
        driver.set_script_timeout(60)
        opened = Page(driver, server)
        opened.browser.set_microphone("granted")
        opened.open()
        yield opened
        driver.quit()


_PLAY_BLOCKS = """
const [address, voice, noise, controls, done] = arguments;
const worker = new Worker("worker.js", { type: "module" });
const { port1, port2 } = new MessageChannel();
const audio = [], shown = [];
fetch(address.replace("onnx", "json")).then((response) => response.json()).then((about) => {
  worker.onmessage = ({ data }) => {
    if (data.error !== undefined) done(data.error);
    if (data.ready) send();
  };
  const send = () => {
    const [here, hiss] = [voice, noise].map((hops) => Float32Array.from(hops[shown.length]));
    port1.postMessage({ voice: here, noise: hiss });
  };
  port1.onmessage = ({ data }) => {
    audio.push(...data.audio);
    shown.push(data.shown);
    if (shown.length < voice.length) return send();
    worker.terminate();
    done([audio, shown]);
  };
  worker.postMessage({ controls, port: port2, load: { graph: new URL(address, location).href, about } }, [port2]);
});
"""


@torch.inference_mode()
def test_the_worker_equals_the_causal_transfer(page: Page, checkpoint: Path) -> None:
    graph = LiveGraph(load_model(checkpoint))
    voice = torch.from_numpy(melody()).view(-1, 160)[:60]
    noise = 2 * torch.rand(len(voice), 160, generator=torch.Generator().manual_seed(0)) - 1
    state, expected, decided = graph.initial_state(), [], []
    for hop, hiss in zip(voice, noise):
        sound, shown, state = graph(hop, hiss, graph.controls(), state)
        expected.append(sound.audio[0])
        decided.append(shown)
    arguments = "graphs/trumpet.onnx", voice.tolist(), noise.tolist(), graph.controls().tolist()
    played, frames = page.driver.execute_async_script(_PLAY_BLOCKS, *arguments)
    expected, decided = torch.cat(expected).numpy(), torch.stack(decided).numpy()
    voiced = SHOWN.index("voiced")
    assert decided[:, voiced].any() and np.abs(expected).max() > 1e-3
    assert np.array_equal(np.array(frames)[:, voiced], decided[:, voiced])
    assert np.abs(np.array(played) - expected).max() < 1e-4


def test_the_microphone_plays_in_tune(page: Page) -> None:
    page.start()
    reports, nodes = [], []
    for _ in range(30):
        reports.append(page.run("return [live.shown, live.report.voicePeak]"))
        nodes.append(page.driver.execute_cdp_cmd("Memory.getDOMCounters", {})["nodes"])
        time.sleep(0.05)
    assert max(nodes) - nodes[0] < 30  # a new one for each frame would be 150
    sung = [shown for shown, _ in reports if shown["voiced"]]
    cents = 1200 * np.log2([(shown["f0"] / VOICE, shown["played_f0"] / (2 * VOICE)) for shown in sung])
    assert len(sung) > 10 and np.median(np.abs(cents)) < 15
    assert max(peak for _, peak in reports) > 0.05
    assert page.run("return live.latency") > 45
    assert page.browser.text("#latency").endswith("sound") or "ms behind you" in page.browser.text("#latency")
    assert page.run("return live.stream.getAudioTracks()[0].getSettings().echoCancellation") is False
    page.browser.photograph("live_desktop")


def test_keys_set_the_octave_and_record(page: Page) -> None:
    body = page.browser.find("body")
    body.send_keys("r")
    body.send_keys(Keys.ARROW_DOWN)  # from one octave higher to the octave that is sung
    page.wait("live.semitones === 0")
    page.wait("live.shown.voiced && Math.abs(live.shown.played_f0 / live.shown.f0 - 1) < 0.01")
    time.sleep(1)
    body.send_keys("r")
    page.wait("document.querySelector('#takes a') !== null")
    read = "fetch(document.querySelector('#takes a').href).then((take) => take.arrayBuffer())"
    wav = bytes(page.driver.execute_async_script(f"{read}.then((bytes) => arguments[0]([...new Uint8Array(bytes)]))"))
    samples = np.frombuffer(wav[44:], np.int16)
    assert wav[:4] == b"RIFF" and len(samples) > 20000 and np.abs(samples).max() > 100
    page.browser.click("#calibrate")
    page.browser.wait(lambda: "You hum around A3" in page.browser.text("#message"))
    body.send_keys(" ")
    page.wait("live.state === 'idle'")
    page.run("localStorage.clear()")


def test_feedback_lowers_the_sound(page: Page) -> None:
    """The microphone gets silence, then a faint held note, then the output again, louder."""
    page.open()
    page.start()
    page.run(
        """
        const { context, node, input } = live;
        input.disconnect();
        const voice = new OscillatorNode(context, { type: "sawtooth", frequency: 220 });
        const [quiet, loop] = [0.01, 3].map((gain) => new GainNode(context, { gain }));
        const late = new DelayNode(context, { delayTime: 0.02 });
        voice.connect(quiet).connect(node);
        node.connect(loop).connect(late).connect(node);
        voice.start();
        """
    )
    page.browser.wait(lambda: "I hear myself" in page.complaint(), 90)
    assert page.run("return live.guarded && live.state === 'playing'")
    page.browser.click("#start")
    page.wait("live.state === 'idle'")
    page.start()
    assert page.run("return !live.guarded") and not page.complaint()


def test_voice_is_dropped_if_the_worker_is_late(page: Page) -> None:
    count = """
    const { port1, port2 } = new MessageChannel();
    let waiting = 0;
    port2.onmessage = () => waiting++;
    live.node.port.postMessage({ worker: port1 }, [port1]);
    setTimeout(() => arguments[0](waiting), 500);
    """
    assert 5 < page.driver.execute_async_script(count) <= 10


def test_a_lost_microphone_is_one_sentence(page: Page) -> None:
    page.run("live.stream.getAudioTracks()[0].dispatchEvent(new Event('ended'))")
    page.browser.wait(lambda: "microphone is gone" in page.complaint())
    page.start()
    page.run("live.context.suspend()")
    page.browser.wait(lambda: "to sleep" in page.complaint())


def test_a_changed_sound_device_is_one_sentence(page: Page) -> None:
    for change in ("live.context.dispatchEvent(new Event('error'))", "live.node.port.onmessage = null"):
        page.start()
        page.run(f"live.patience = 300; {change}")
        page.browser.wait(lambda: "sound device has changed" in page.complaint())
        page.run("live.patience = 9000")


def test_midi_goes_to_the_chosen_port(page: Page) -> None:
    page.open()
    page.run(
        """
        window.sent = [];
        const synth = { id: "1", name: "Synth", send: (message) => sent.push([...message]) };
        navigator.requestMIDIAccess = async () => (window.access = { outputs: new Map([["1", synth]]) });
        document.getElementById("midi").dispatchEvent(new Event("focus"));
        """
    )
    page.wait("document.querySelectorAll('#midi option').length === 2")
    page.run("document.getElementById('midi').value = '1'; access.onstatechange()")
    page.start()
    page.wait("sent.some(([status, note]) => status === 0x90 && note === 69)")  # an octave higher than sung
    page.browser.click("#start")
    sent = page.run("return sent")
    statuses = [message[0] for message in sent]
    assert statuses[:2] == [0xE0, 0x90] and statuses[-1] == 0x80 and statuses.count(0x90) == statuses.count(0x80)
    assert all(0 <= value <= 127 for message in sent for value in message[1:])


def test_two_tabs_do_not_play_at_once(page: Page) -> None:
    page.start()
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.open()
    page.is_refused("Another tab")
    page.driver.close()
    page.driver.switch_to.window(first)
    page.browser.click("#start")


def test_refusals_are_one_sentence_and_start_works_again(page: Page, checkpoint: Path) -> None:
    page.open()
    page.browser.set_microphone("denied")
    page.is_refused("blocks the microphone")
    page.browser.set_microphone("granted")
    page.server.hidden = "/vendor/"
    page.is_refused("engine could not be fetched")
    page.server.hidden = "/graphs/"
    page.is_refused("instrument could not be fetched")
    page.server.hidden = ""
    page.server.policy = "script-src 'self' blob:"  # no WebAssembly in a new Worker
    page.is_refused("WebAssembly")
    page.server.policy = ""
    page.driver.execute_cdp_cmd("Network.clearBrowserCache", {})  # it keeps the policy with the file
    for name, words in (("WebAssembly", "WebAssembly"), ("AudioWorkletNode", "too old")):
        page.run(f"window.kept = {name}; window.{name} = undefined")
        page.is_refused(words)
        page.run(f"window.{name} = kept")
    page.run("window.kept = AudioContext.prototype.resume")
    page.run("AudioContext.prototype.resume = () => new Promise(() => {}); live.patience = 300")
    page.is_refused("no loudspeaker")
    page.run("live.patience = 9000; AudioContext.prototype.resume = kept")
    page.run("window.ask = navigator.mediaDevices.getUserMedia")
    refusals = {"NotFoundError": "no microphone", "NotReadableError": "Another program", "Surprise": "does not work"}
    for name, words in refusals.items():
        page.run(f"navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('', '{name}'); }}")
        page.is_refused(words)
    page.run("navigator.mediaDevices.getUserMedia = ask")
    page.start()
    page.browser.photograph("live_again")


def test_page_loads_nothing_from_other_sites(page: Page) -> None:
    addresses = page.browser.requested()
    allowed = (page.browser.address, f"blob:{page.browser.address}", "data:", "https://cdn.jsdelivr.net/")
    assert len(addresses) > 10 and not [address for address in addresses if not address.startswith(allowed)]


def test_static_page_is_complete(checkpoint: Path, tmp_path: Path, page: Page, monkeypatch) -> None:
    monkeypatch.setattr(live_page, "PRETRAINED_DIR", checkpoint.parent)
    live_page.write_static_page(tmp_path / "site")
    assert {path.name for path in (tmp_path / "site" / "graphs").iterdir()} == {"trumpet.onnx", "trumpet.json"}
    assert '<meta name="static"' in (tmp_path / "site" / "index.html").read_text()


def test_unplayable_instrument_is_one_sentence(page: Page, checkpoint: Path) -> None:
    script = "fetch(arguments[0]).then(async (r) => arguments[1]([r.status, await r.text()]))"
    for name in (
        "graphs/nothing.onnx",
        "graphs/../../app.py",
        "graphs/trumpet",
        "../app.py",
        "vendor/../../live_page.py",
    ):
        status, text = page.driver.execute_async_script(script, f"{page.browser.address}live/{name}")
        assert status in (404, 405) and "import" not in text


def test_another_machine_needs_https(page: Page) -> None:
    page.driver.get(f"http://studio.test:{page.server.port}/live")
    page.wait("live.instruments.length > 0")
    page.is_refused("by https")
