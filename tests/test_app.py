"""app.py: the list of instruments, one request, the endpoints on a running server, and the command line."""

import importlib.util
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import soundfile
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import app
from checkpoint import make_checkpoint, save_checkpoint
from config import load_config
from features import extract_features, load_audio
from model import build_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio")
ROOT = Path(__file__).parent.parent
RATE = 16000


def save_untrained(path: Path, instrument: str = "trumpet", epoch: int = 1, when: float | None = None) -> Path:
    """Write a checkpoint that was never trained, with the statistics of one that was."""
    torch.manual_seed(0)
    config = load_config()
    statistics = {
        "f0_quantiles": np.geomspace(165, 1046, 101).tolist(),
        "loudness_quantiles": np.linspace(-50, -12, 101).tolist(),
    }
    weights = build_model(config, instrument).state_dict()
    content = make_checkpoint(config, instrument, model=weights, statistics=statistics, epoch=epoch, step=10 * epoch)
    save_checkpoint(path, content)
    if when is not None:
        os.utime(path, (when, when))
    return path


def sing(path: Path, f0: float, seconds: float = 1.0) -> Path:
    """Write a buzzy tone between two short rests."""
    phase = 2 * np.pi * f0 * np.arange(int(seconds * RATE)) / RATE
    tone = 0.05 * sum(np.sin(k * phase) / k for k in range(1, 13))
    soundfile.write(path, np.pad(tone, RATE // 5), RATE)
    return path


def hear(path: str | Path) -> float:
    """Return the median f0 of a sound file in Hz."""
    heard = extract_features(load_audio(path, RATE), load_config())
    return float(np.median(heard.f0.numpy()[heard.periodicity.numpy() > 0.6]))


def cents(one: float, other: float) -> float:
    return 1200 * abs(np.log2(one / other))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in place of checkpoints/pretrained, with a guitar in it."""
    folder = tmp_path_factory.mktemp("pretrained")
    save_untrained(folder / "guitar.pth", "guitar")
    (folder / "guitar.md").write_text("# The card of the guitar")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "PRETRAINED_DIR", folder)
        yield folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where requests make their temporary folders, and Gradio its copies."""
    folder = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        yield folder


@pytest.fixture(scope="module")
def server(shipped: Path, scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page whose only training is a trumpet; recordings may last 3 s."""
    checkpoints = tmp_path_factory.mktemp("checkpoints")
    save_untrained(checkpoints / "trumpet" / "latest.pth", epoch=7)
    page = app.build_ui(checkpoints, "cpu", max_seconds=3)
    _, url, _ = page.launch(server_port=free_port(), prevent_thread_lock=True, quiet=True, **app.look())
    yield url
    page.close(verbose=False)


@pytest.fixture(scope="module")
def client(server: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(server, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


@pytest.fixture
def collection(shipped: Path, tmp_path: Path) -> app.Collection:
    return app.Collection(tmp_path, torch.device("cpu"))


def test_importing_builds_and_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("importing app.py did something")

    for owner, name in ((gr.Blocks, "__init__"), (torch, "load"), (threading.Thread, "start"), (Path, "read_text")):
        monkeypatch.setattr(owner, name, refuse)
    spec = importlib.util.spec_from_file_location("app_again", ROOT / "app.py")
    monkeypatch.setitem(sys.modules, "app_again", module := importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    assert callable(module.build_ui)


# --- instruments ----------------------------------------------------------------------------------


def test_the_newest_latest_comes_first(collection: app.Collection) -> None:
    assert [one.name for one in collection.find()] == ["guitar"]
    save_untrained(collection.checkpoint_dir / "a" / "latest.pth", "oboe", epoch=3, when=2e9)
    save_untrained(collection.checkpoint_dir / "latest.pth", "tuba", epoch=4, when=1e9)
    latest, guitar = collection.find()
    assert (latest.name, latest.sound, guitar.name) == ("latest", "oboe", "guitar")
    assert "oboe" in latest.label and "epoch 3, step 30, 18 May" in latest.label  # 2e9 s after 1970
    save_untrained(collection.checkpoint_dir / "a" / "latest.pth", "oboe", epoch=5, when=2.1e9)
    assert "epoch 5" in collection.find()[0].label
    assert collection.choose("").sound == "oboe" and collection.choose("guitar").sound == "guitar"


def test_a_damaged_training_hides_no_other_instrument(collection: app.Collection, caplog) -> None:
    (collection.checkpoint_dir / "latest.pth").write_bytes(b"half")
    assert [one.name for one in collection.find()] == ["guitar"]
    assert "is damaged" in caplog.text


def test_a_model_is_loaded_once_until_its_file_changes(collection: app.Collection) -> None:
    path = save_untrained(collection.checkpoint_dir / "latest.pth", when=1e9)
    first = collection.load(collection.choose("latest"))
    assert collection.load(collection.choose("latest")) is first
    os.utime(path, (1.1e9, 1.1e9))
    assert collection.load(collection.choose("latest")) is not first


def test_the_card_lies_beside_the_model(collection: app.Collection) -> None:
    assert app.read_card(collection.choose("guitar")) == "# The card of the guitar"
    save_untrained(collection.checkpoint_dir / "latest.pth")
    assert "has no model card" in app.read_card(collection.choose("latest"))


# --- one request ----------------------------------------------------------------------------------


@pytest.fixture
def service(collection: app.Collection) -> app.Service:
    return app.Service(collection, 3.0, ThreadPoolExecutor(1))


def request(voice: Path | None, folder: Path) -> app.Request:
    return app.Request(str(voice) if voice else None, "guitar", None, True, 0, folder)


def test_the_steps_come_in_order_and_the_outcome_last(service: app.Service, tmp_path: Path) -> None:
    *steps, outcome = app.work(service, request(sing(tmp_path / "My song!.wav", 220.0), tmp_path))
    assert steps == sorted(steps) and set(steps) == {0, 1, 2}
    assert [path.name for path in outcome.files] == [
        "My_song__guitar.wav", "My_song__guitar_harmonic.wav", "My_song__guitar_noise.wav"
    ]
    sound, harmonic, noise = (soundfile.read(path)[0] for path in outcome.files)
    assert np.abs(harmonic + noise - sound).max() < 1e-4  # 16 bits each


def test_a_cancelled_request_starts_nothing_more(
    service: app.Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, played = threading.Event(), []
    monkeypatch.setattr(app, "transfer", lambda *_: played.append(1))
    service.worker.submit(release.wait)  # another request is being played
    steps = app.work(service, request(sing(tmp_path / "a.wav", 220.0), tmp_path))
    while next(steps) != 2:
        pass
    steps.close()
    release.set()
    service.worker.shutdown()
    assert played == [] and list(tmp_path.glob("a_*")) == []


def test_the_picture_has_the_page_s_colours(service: app.Service, tmp_path: Path) -> None:
    *_, outcome = app.work(service, request(sing(tmp_path / "a.wav", 220.0, 0.5), tmp_path))
    pictures = [Image.open(path).convert("RGB") for path in app.draw(outcome, tmp_path)]
    corners = ["#{:02x}{:02x}{:02x}".format(*picture.getpixel((0, 0))) for picture in pictures]
    assert corners == [theme.background for theme in app.THEMES.values()]


def test_a_long_recording_is_refused_before_it_is_decoded_and_after(
    service: app.Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "long.flac", np.zeros(4 * RATE), RATE)
    with pytest.raises(ValueError, match="lasts 4 s, and up to 3 s can be played"):
        app.check_recording(str(tmp_path / "long.flac"), 3.0)
    monkeypatch.setattr(app.soundfile, "info", lambda _: SimpleNamespace(duration=0.1))  # a header that lies
    with pytest.raises(ValueError, match="lasts 4 s, and up to 3 s can be played"):
        list(app.work(service, request(tmp_path / "long.flac", tmp_path)))


def test_no_path_of_the_server_is_in_an_error() -> None:
    for message in ("/secret/a.wav is a folder, a sound file is expected", "there is no file /secret/a.wav"):
        sentence = app.explain(ValueError(message), "/secret/a.wav")
        assert "secret" not in sentence and sentence[0].isupper() and sentence.endswith(".")


@pytest.fixture
def run(shipped: Path, scratch: Path, tmp_path: Path) -> Callable[..., Iterator[dict]]:
    """What the page's button does."""
    page = app.build_ui(tmp_path, "cpu", max_seconds=3)
    return next(event.fn for event in page.fns.values() if event.name == "run")


def changes(step: dict) -> dict[str, str]:
    """Return what a step of the page changes, as text, by the name or label of the component."""
    return {part.elem_id or str(getattr(part, "value", part.label)): str(change) for part, change in step.items()}


def test_the_button_shows_sound_first_and_then_the_picture(run, tmp_path: Path, scratch: Path) -> None:
    steps = [changes(step) for step in run(str(sing(tmp_path / "a.wav", 220.0)), "guitar", -12, 2, True, 0)]
    assert "Fetching the instrument" in steps[0]["status"] and "class=\"now\"" in steps[0]["status"]
    sound, picture = steps[-2:]
    assert "a_guitar.wav" in sound["played"] and sound["report"].startswith("<p>Shifted -10 st")
    assert "'visible': True" in sound["results"] and "play" not in sound
    assert "'visible': True" in picture["play"] and "'visible': False" in picture["cancel"]
    assert list(scratch.glob("vox2trumpet-*")) == []


def test_the_button_says_what_is_missing(run) -> None:
    *_, last = (changes(step) for step in run(None, "guitar", "auto", 0, True, 0))
    assert "There is no recording yet" in last["status"] and "error" in last["status"]
    assert "'visible': True" in last["play"] and "'visible': False" in last["cancel"]


# --- a running server -----------------------------------------------------------------------------


def test_the_page_asks_nothing_of_the_outside(server: str) -> None:
    with urllib.request.urlopen(server) as answer:
        text = answer.read().decode()
    loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="?((?:https?:)?//[^">]+)', text)
    assert [address for address in loaded if not address.startswith(server)] == []
    assert "Vox2Trumpet" in text and "--body-background-fill" not in re.findall(r"@import[^;]*", text)


def test_the_instruments_are_listed(client: Client) -> None:
    latest, guitar = client.predict(api_name="/instruments")
    assert (latest["name"], latest["sound"]) == ("latest", "trumpet") and "epoch 7" in latest["label"]
    assert guitar == {"name": "guitar", "sound": "guitar", "label": "Guitar"}


def test_a_program_gets_its_tune_back(client: Client, tmp_path: Path, scratch: Path) -> None:
    voice = handle_file(sing(tmp_path / "voice.wav", 220.0))
    sound, harmonic, noise, report = client.predict(voice, "guitar", 7, api_name="/transfer")
    assert report["semitones"] == 7 and report["instrument"] == "guitar"
    assert cents(hear(sound), 220 * 2 ** (7 / 12)) < 10
    assert [Path(path).name for path in (sound, harmonic, noise)] == [
        "voice_guitar.wav", "voice_guitar_harmonic.wav", "voice_guitar_noise.wav"
    ]
    assert list(scratch.glob("vox2trumpet-*")) == []


def test_the_recording_alone_is_enough(client: Client, tmp_path: Path) -> None:
    sound, _, _, report = client.predict(handle_file(sing(tmp_path / "voice.wav", 110.0)), api_name="/transfer")
    assert report["instrument"] == "trumpet" and report["semitones"] in (12, 24)
    assert cents(hear(sound), 110 * 2 ** (report["semitones"] / 12)) < 10


def test_two_at_once_get_their_own_tunes(client: Client, tmp_path: Path) -> None:
    pitches = (220.0, 293.7, 392.0)
    voices = [handle_file(sing(tmp_path / f"{f0:.0f}.wav", f0, 0.6)) for f0 in pitches]
    jobs = [client.submit(voice, "guitar", 0, api_name="/transfer") for voice in voices]
    for job, f0 in zip(jobs, pitches):
        assert cents(hear(job.result(timeout=60)[0]), f0) < 10


@pytest.mark.parametrize(
    ("sound", "sentence"),
    [
        (np.zeros(RATE), "I hear only silence"),
        (0.01 * np.random.default_rng(0).standard_normal(RATE), "I could not hear a melody"),
        (np.zeros(4 * RATE), "The recording lasts 4 s, and up to 3 s can be played; trim it."),
        (None, "This is not a sound file that I can read"),
    ],
    ids=["silence", "noise", "too long", "text"],
)
def test_what_cannot_be_played_is_one_friendly_sentence(
    client: Client, tmp_path: Path, sound: np.ndarray | None, sentence: str
) -> None:
    path = tmp_path / "voice.wav"
    if sound is None:
        path.write_text("no sound")
    else:
        soundfile.write(path, sound, RATE)
    with pytest.raises(AppError, match=sentence) as raised:
        client.predict(handle_file(path), api_name="/transfer")
    assert "Traceback" not in str(raised.value) and "/" not in str(raised.value)


@pytest.mark.parametrize(
    ("semitones", "seed", "sentence"), [(1e9, 0, "between -60 and 60"), (0, -1, "The seed should be")]
)
def test_numbers_out_of_bounds_are_refused(
    client: Client, tmp_path: Path, semitones: float, seed: int, sentence: str
) -> None:
    voice = handle_file(sing(tmp_path / "voice.wav", 220.0))
    with pytest.raises(AppError, match=sentence):
        client.predict(voice, "guitar", semitones, True, seed, api_name="/transfer")


def test_an_unknown_instrument_is_named_with_those_there_are(client: Client, tmp_path: Path) -> None:
    with pytest.raises(AppError, match=r"There is no instrument 'kazoo' \(there is latest, guitar\)"):
        client.predict(handle_file(sing(tmp_path / "voice.wav", 220.0)), "kazoo", api_name="/transfer")


# --- the command line -----------------------------------------------------------------------------


def test_a_port_in_use_is_one_sentence_and_exit_1(tmp_path: Path, caplog, capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert app.main(["--port", str(port), "--checkpoint_dir", str(tmp_path), "--device", "cpu"]) == 1
    assert caplog.messages == [f"app.py: port {port} is in use; stop what runs there, or choose another with --port"]
    assert "Traceback" not in capsys.readouterr().err


def test_ctrl_c_leaves_cleanly(tmp_path: Path, caplog) -> None:
    port = free_port()

    def press() -> None:
        for _ in range(300):
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background inherits "ignore"
    threading.Thread(target=press).start()
    try:
        assert app.main(["--port", str(port), "--checkpoint_dir", str(tmp_path), "--device", "cpu"]) == 0
    except KeyboardInterrupt:
        pytest.fail("Ctrl-C came through")
    finally:
        signal.signal(signal.SIGINT, previous)
    assert caplog.messages[-1] == "app.py: stopped"
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", port)) != 0  # the port is free again


def test_a_limit_that_makes_no_sense_is_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        app.parse_args(["--max_seconds", "0"])
    assert "--max_seconds should be over 0" in capsys.readouterr().err
