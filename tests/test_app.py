"""app.py on a running server: the endpoints, what the page shows, hostile requests, and the command line."""

import asyncio
import contextlib
import dataclasses
import http.client
import importlib.util
import inspect
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import gradio as gr
import httpx
import numpy as np
import pytest
import requests
import soundfile
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

import app
from config import load_config
from page import ROOT, cents, free_port, hear, save_untrained, sing
from voice.instrument_fit import TransferOptions
from web import file_guard, live_page, transfer_request
from web.file_guard import OwnPageOnly

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio")
LIMITS = dataclasses.replace(
    load_config().page, max_seconds=3.0, max_upload_megabytes=1, max_waiting=8, max_waiting_per_visitor=4
)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Replace checkpoints/pretrained by a folder with a guitar."""
    folder = tmp_path_factory.mktemp("pretrained")
    save_untrained(folder / "guitar.pth", "guitar")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer_request, "PRETRAINED_DIR", folder)
        yield folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder for the temporary folders of requests and Gradio's copies."""
    folder = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        yield folder


@pytest.fixture(scope="module")
def running(shipped: Path, scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gr.Blocks]:
    """A page whose only training is a trumpet; recordings may last 3 s."""
    checkpoints = tmp_path_factory.mktemp("checkpoints")
    save_untrained(checkpoints / "trumpet" / "latest.pth", epoch=7)
    page = app.build_ui(checkpoints, "cpu", LIMITS)
    app.launch(page, LIMITS, None, free_port())
    yield page
    page.close(verbose=False)


@pytest.fixture(scope="module")
def server(running: gr.Blocks) -> str:
    """The address of the page."""
    return running.local_url


@pytest.fixture(scope="module")
def client(server: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(server, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


def test_importing_builds_and_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("importing app.py did something")

    for owner, name in ((gr.Blocks, "__init__"), (torch, "load"), (threading.Thread, "start"), (Path, "read_text")):
        monkeypatch.setattr(owner, name, refuse)
    for file in ("app", "web/transfer_request", "web/page_layout", "web/page_style", "web/file_guard"):
        spec = importlib.util.spec_from_file_location(f"{Path(file).name}_again", ROOT / f"{file}.py")
        monkeypatch.setitem(sys.modules, f"{Path(file).name}_again", module := importlib.util.module_from_spec(spec))
        spec.loader.exec_module(module)


# --- what the button does -------------------------------------------------------------------------


@pytest.fixture
def run(shipped: Path, scratch: Path, tmp_path: Path) -> Callable[..., Iterator[dict]]:
    page = app.build_ui(tmp_path, "cpu", LIMITS)
    handler = next(event.fn for event in page.fns.values() if event.name == "run")
    values = dataclasses.asdict(TransferOptions())
    inputs = next(event.inputs for event in page.fns.values() if event.name == "run")[4:]

    def press(recording: Path | None, instrument: str, octave: str | int, **options: object) -> Iterator[dict]:
        automatic = dict.fromkeys(("output_rate", "articulation", "pluck_repeat"), "auto")
        wanted = {**values, **automatic, "semitones": octave, **options}
        assert len(wanted) == len(inputs)
        chosen = [control.preprocess(wanted[name]) for name, control in zip(app_order(page), inputs)]
        return handler(recording and str(recording), instrument, 0, False, *chosen)

    return press


def app_order(page: gr.Blocks) -> list[str]:
    """Return the options in the order in which the button passes them."""
    with gr.Blocks():
        return list(app.page_layout.build_controls(LIMITS).options)


def changes(step: dict) -> dict[str, str]:
    """Return the changes of a step as text, by the name or label of the component."""
    return {part.elem_id or str(getattr(part, "value", part.label)): str(change) for part, change in step.items()}


def test_every_option_has_an_endpoint_parameter_and_a_control() -> None:
    wanted = {field.name for field in dataclasses.fields(TransferOptions)}
    page = app.build_ui(Path("nowhere"), "cpu", LIMITS)
    endpoint = next(event.fn for event in page.fns.values() if event.api_name == "transfer")
    parameters = list(inspect.signature(endpoint).parameters)
    options = [field.name for field in dataclasses.fields(TransferOptions)]
    assert parameters == ["recording", "instrument", *options, "seed", "normalize"]
    assert set(app_order(page)) == wanted


def test_a_result_whose_notes_cannot_be_written_stays(run, tmp_path: Path, monkeypatch) -> None:
    def fail(*_) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(app, "write_notes", fail)
    *_, sound, last = map(changes, run(sing(tmp_path / "a.wav", 220.0), "guitar", 0))
    assert "stems" in sound["desk"] and "desk" not in last and "'visible': True" in last["play"]
    assert "warning" in last["status"] and "notes" in last["status"] and "error" not in last["status"]


def test_button_plays_and_describes_the_result(run, tmp_path: Path, scratch: Path) -> None:
    *steps, early, last = run(sing(tmp_path / "a.wav", 220.0), "guitar", -12, transpose=2)
    first = changes(steps[0])
    assert "Fetching the instrument" in first["status"] and 'class="now"' in first["status"]
    sound, desk = (next(value for part, value in step.items() if part.elem_id == "desk") for step in (early, last))
    assert sound == {name: value for name, value in desk.items() if name not in ("midi", "curves")}  # the sound first
    assert desk["sentence"] == "Played 10 semitones lower, B2 to B2; 100 % of it lies outside the guitar's range." or (
        "every note fits the guitar" in desk["sentence"]
    )
    assert "-10 st" in desk["details"] and desk["request"]["options"]["transpose"] == 2
    played = [note for note in desk["pitch"]["played"] if note is not None]
    assert np.median(played) == pytest.approx(47, abs=0.2) and desk["pitch"]["rate"] == 25
    assert "'visible': True" in changes(last)["play"] and "'visible': False" in changes(last)["cancel"]
    assert list(scratch.glob("vox2trumpet-*")) == []


@pytest.mark.parametrize(("chosen", "rate"), [("auto", 16000), (44100, 44100), (48000, 48000)])
def test_button_uses_the_chosen_sample_rate(run, tmp_path: Path, chosen: str | int, rate: int) -> None:
    for step in run(sing(tmp_path / "a.wav", 220.0, 0.3), "guitar", "auto", output_rate=chosen):
        for part, value in step.items():
            if part.elem_id == "desk":  # the files are there until the next step
                files = [soundfile.info(stem["path"]) for stem in value["stems"].values()]
    assert len(files) == 2 and {(file.samplerate, file.frames) for file in files} == {(rate, round(0.7 * rate))}


def test_button_reports_missing_input(run) -> None:
    *_, last = (changes(step) for step in run(None, "guitar", "auto"))
    assert "There is no recording yet" in last["status"] and "error" in last["status"]
    assert "'visible': True" in last["play"] and "'visible': False" in last["cancel"]


@pytest.mark.parametrize(
    ("report", "options", "notice", "fixes"),
    [
        ({"has_backing": True}, {}, "more than one note at a time", []),
        ({"share_out_of_range": 0.3}, {}, "30 % of the notes are out of the guitar's range", [{"fold": True}]),
        ({"share_out_of_range": 0.3}, {"fold": True}, "out of the guitar's range", []),
    ],
)
def test_doubtful_result_has_a_warning_and_a_fix(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: dict, options: dict, notice: str, fixes: list
) -> None:
    render = transfer_request.transfer_measured

    def doubtful(*arguments) -> object:
        result = render(*arguments)
        return dataclasses.replace(result, report=result.report | report)

    monkeypatch.setattr(transfer_request, "transfer_measured", doubtful)
    *_, last = run(sing(tmp_path / "a.wav", 220.0), "guitar", "auto", **options)
    (said,) = next(value for part, value in last.items() if part.elem_id == "desk")["notices"]
    assert notice in said["text"] and [fix["set"] for fix in said["fixes"] if "fold" in fix["set"]] == fixes


# --- programs -------------------------------------------------------------------------------------


def test_the_instruments_are_listed(client: Client) -> None:
    guitar, latest = client.predict(api_name="/instruments")
    assert (latest["name"], latest["sound"]) == ("trumpet/latest", "trumpet") and "epoch 7" in latest["label"]
    assert guitar == {"name": "guitar", "sound": "guitar", "label": "Guitar"}


def test_the_live_page_offers_the_same_instruments(server: str, client: Client) -> None:
    with urllib.request.urlopen(f"{server}live", timeout=20) as response:
        assert response.url.endswith("/live/") and b'src="live.js"' in response.read()
    with urllib.request.urlopen(f"{server}live/instruments.json", timeout=20) as response:
        offered = [entry["graph"] for entry in json.load(response)]
    known = client.predict(api_name="/instruments")
    assert offered == [f"graphs/{instrument['name']}.onnx" for instrument in known]


def test_endpoint_returns_the_melody_of_the_recording(client: Client, tmp_path: Path, scratch: Path) -> None:
    voice = handle_file(sing(tmp_path / "voice.wav", 220.0))
    sound, harmonic, noise, report, midi, curves = client.predict(voice, "guitar", 7, api_name="/transfer")
    assert report["semitones"] == 7 and report["instrument"] == "guitar"
    assert cents(hear(sound), 220 * 2 ** (7 / 12)) < 10
    assert [Path(path).name for path in (sound, harmonic, noise, midi, curves)] == [
        "voice_guitar.wav",
        "voice_guitar_harmonic.wav",
        "voice_guitar_noise.wav",
        "voice_guitar.mid",
        "voice_guitar_curves.csv",
    ]
    assert list(scratch.glob("vox2trumpet-*")) == []


def test_endpoint_uses_the_requested_sample_rate(client: Client, tmp_path: Path) -> None:
    voice = handle_file(sing(tmp_path / "voice.wav", 220.0, 0.3))
    *files, report, _, _ = client.predict(voice, "guitar", 0, output_rate=48000, api_name="/transfer")
    assert {(soundfile.info(path).samplerate, soundfile.info(path).frames) for path in files} == {(48000, 33600)}
    assert report["seconds"] == 0.7 and cents(hear(files[0]), 220) < 10
    with pytest.raises(AppError, match="utput_rate should be between 8000 and 48000"):
        client.predict(voice, output_rate=96000, api_name="/transfer")


@pytest.mark.parametrize(("suffix", "codec"), [("webm", "libopus"), ("m4a", "aac"), ("mp3", "mp3")])
def test_what_phones_and_browsers_record_is_played(client: Client, tmp_path: Path, suffix: str, codec: str) -> None:
    samples, rate = soundfile.read(sing(tmp_path / "voice.wav", 220.0), dtype="float32")
    with av.open(str(tmp_path / f"voice.{suffix}"), "w") as container:
        stream = container.add_stream(codec, rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        for part in [*av.AudioResampler(stream.format, "mono", 48000, stream.frame_size).resample(frame), None]:
            container.mux(stream.encode(part))
    sound, *_ = client.predict(handle_file(tmp_path / f"voice.{suffix}"), "guitar", 0, api_name="/transfer")
    assert cents(hear(sound), 220) < 10


def test_only_the_recording_is_required(client: Client, tmp_path: Path) -> None:
    sound, _, _, report, *_ = client.predict(handle_file(sing(tmp_path / "voice.wav", 110.0)), api_name="/transfer")
    assert report["instrument"] == "guitar" and report["semitones"] in (0, 12, 24)
    assert cents(hear(sound), 110 * 2 ** (report["semitones"] / 12)) < 10


def test_simultaneous_requests_are_not_mixed_and_excess_is_refused(
    client: Client, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, perform = threading.Event(), transfer_request.perform_transfer
    monkeypatch.setattr(transfer_request, "perform_transfer", lambda *a: (release.wait(60), perform(*a))[1])
    pitches = [180.0 * 2 ** (step / 6) for step in range(16)]
    voices = [handle_file(sing(tmp_path / f"{f0:.0f}.wav", f0, 0.5)) for f0 in pitches]
    visitors = [
        Client(server, verbose=False, headers={"X-Forwarded-For": f"10.0.0.{n}"}, download_files=str(tmp_path / "got"))
        for n in range(4)
    ]
    jobs = [visitors[n % 4].submit(voice, "guitar", 0, api_name="/transfer") for n, voice in enumerate(voices)]
    for _ in range(600):
        if any(job.done() for job in jobs):  # nothing is played yet, so it was refused
            break
        time.sleep(0.1)
    release.set()
    served = 0
    for job, f0 in zip(jobs, pitches):
        try:
            sound = job.result(timeout=120)[0]
        except Exception as error:
            assert "Queue is full" in str(error) or "503" in str(error)
        else:
            served += 1
            assert cents(hear(sound), f0) < 50  # the tunes lie 200 apart
    assert LIMITS.max_waiting <= served < len(pitches)
    client.predict(voices[0], "guitar", 0, api_name="/transfer")  # afterwards the queue accepts requests again


def test_melody_is_returned_and_rendered_unchanged(client: Client, tmp_path: Path) -> None:
    notes, curves, midi = client.predict(handle_file(sing(tmp_path / "voice.wav", 220.0)), api_name="/melody")
    (note,) = notes
    assert note["name"] == "A3" and note["pitch"] == pytest.approx(57, abs=0.1)
    assert note["end"] - note["start"] == pytest.approx(1, abs=0.1)
    sound, _, _, report = client.predict(handle_file(curves), "guitar", api_name="/render")
    assert cents(hear(sound), 220) < 10 and report["semitones"] == 0
    sound, *_ = client.predict(handle_file(midi), "guitar", 0, api_name="/transfer")
    assert cents(hear(sound), 220) < 10


def test_code_shown_on_the_api_page_runs_unchanged(server: str, client: Client) -> None:
    shown = requests.get(f"{server}gradio_api/info", timeout=10).json()["named_endpoints"]
    assert set(shown) == {"/transfer", "/melody", "/render", "/instruments"}
    for name, endpoint in shown.items():
        first, *others = endpoint["parameters"] or [None]
        values = {one["parameter_name"]: one["parameter_default"] for one in others}
        assert all(one["parameter_has_default"] and one["type"]["description"] for one in others)
        file = [handle_file(ROOT / first["example_input"]["path"])] if first else []
        if name != "/transfer":  # the hum is longer than this page allows
            client.predict(*file, **values, api_name=name) if name != "/melody" else None
    transpose = next(one for one in shown["/transfer"]["parameters"] if one["parameter_name"] == "transpose")
    assert "semitones" in transpose["type"]["description"] and "-60 to 60" in transpose["type"]["description"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"semitones": 1e9}, "between -60 and 60"),
        ({"seed": -1}, "The seed should be"),
        ({"key": "H dur"}, "key 'H dur'"),
        ({"instrument": "kazoo"}, r"There is no instrument 'kazoo' \(there is guitar, trumpet/latest\)"),
    ],
)
def test_invalid_arguments_are_refused(client: Client, tmp_path: Path, arguments: dict, sentence: str) -> None:
    voice = handle_file(sing(tmp_path / "voice.wav", 220.0))
    with pytest.raises(AppError, match=sentence):
        client.predict(voice, **arguments, api_name="/transfer")


def test_server_survives_a_failing_request(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voice = handle_file(sing(tmp_path / "voice.wav", 220.0))
    with monkeypatch.context() as patch:
        patch.setattr(
            transfer_request, "transfer_measured", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory"))
        )
        with pytest.raises(AppError):
            client.predict(voice, api_name="/transfer")
    assert client.predict(voice, "guitar", api_name="/transfer")


def test_curl_commands_of_the_docs_run(server: str, tmp_path: Path) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    (block,) = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "page.md").read_text(), flags=re.S)
    sing(tmp_path / "voice.wav", 220.0)
    script = block.replace("http://127.0.0.1:7860", server.rstrip("/")).replace("examples/hum.wav", "voice.wav")
    shell = subprocess.run(["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert shell.returncode == 0, shell.stderr
    steps = 12 * math.log2(hear(tmp_path / "played.wav") / 220)
    assert abs((steps - 2 + 6) % 12 - 6) < 0.2  # whole octaves and the two requested semitones


# --- hostile requests -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound on the server that no visitor may get."""
    return sing(tmp_path_factory.mktemp("private") / "secret.wav", 330.0)


class Bait(BaseHTTPRequestHandler):
    """An internal server that records its visits."""

    visits: list[str] = []  # noqa: RUF012  shared by all instances

    def do_GET(self) -> None:
        self.visits.append(self.path)
        self.send_error(404)

    do_HEAD = do_GET


@pytest.fixture(scope="module")
def bait() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Bait) as inside:
        threading.Thread(target=inside.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{inside.server_address[1]}"
        inside.shutdown()


@pytest.mark.parametrize(
    "wanted",
    [
        "{secret}",
        "/etc/passwd",
        "../../../../../../etc/passwd",
        "..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "app.py",
        "config.json",
        "{root}/app.py",
        "{root}/checkpoints",
        "file:///etc/passwd",
        "file://{secret}",
        "{scratch}",
        "{scratch}/gradio",
        "{scratch}/gradio/../../..{secret}",
        "{bait}/x.wav",
        "https://example.com/x.wav",
        "HTTP://example.com",
        "ftp://example.com/x",
        "/proc/self/environ",
        "//example.com/x",
        "\\\\example.com\\x",
        "{link}",
    ],
)
def test_only_the_files_of_the_page_are_served(
    server: str, scratch: Path, secret: Path, bait: str, wanted: str, tmp_path: Path
) -> None:
    (link := tmp_path / "link.wav").symlink_to(secret)
    wanted = wanted.format(secret=secret, root=ROOT, scratch=scratch, bait=bait, link=link)
    for prefix in ("gradio_api/file=", "file=", "gradio_api/file/", "gradio_api/proxy=", "static/", "assets/"):
        request = requests.Request("GET", server + prefix + wanted).prepare()
        request.url = server + prefix + wanted  # without normalisation of the dots
        with requests.Session() as session:
            answer = session.send(request, timeout=10, allow_redirects=False)
        assert answer.status_code in (400, 403, 404, 405), (prefix, answer.status_code)
        assert b"root:" not in answer.content and b"RIFF" not in answer.content
    assert Bait.visits == []


@pytest.mark.parametrize(
    "wanted",
    [
        "{secret}",
        "/etc/passwd",
        "examples/hum.wav",
        "../x",
        "{bait}/x.wav",
        "{link}",
        "file://{secret}",
        "HTTPS://127.0.0.1/x.wav",
        "",
    ],
)
def test_only_an_upload_can_be_played(server: str, secret: Path, bait: str, wanted: str, tmp_path: Path) -> None:
    (link := tmp_path / "link.wav").symlink_to(secret)
    wanted = wanted.format(secret=secret, bait=bait, link=link)
    payload = {"path": wanted, "url": f"{bait}/y.wav", "meta": {"_type": "gradio.FileData"}}
    joined = requests.post(f"{server}gradio_api/call/v2/transfer", json={"recording": payload}, timeout=10)
    if joined.status_code == 200:
        events = requests.get(f"{server}gradio_api/call/v2/transfer/{joined.json()['event_id']}", timeout=30).text
        assert "event: error" in events and "event: complete" not in events and "secret" not in events
    else:
        assert joined.status_code == 403
    assert Bait.visits == []


def ask(server: str, body: dict, **headers: str) -> str:
    """Send a request to an endpoint, and return the events of the answer."""
    joined = requests.post(f"{server}gradio_api/call/v2/transfer", json=body, headers=headers, timeout=10)
    assert joined.status_code == 200, joined.text
    return requests.get(f"{server}gradio_api/call/v2/transfer/{joined.json()['event_id']}", timeout=60).text


def send(server: str, voice: Path) -> dict:
    """Upload a recording; return the value that refers to it in a request."""
    with voice.open("rb") as file:
        (path,) = requests.post(f"{server}gradio_api/upload", files={"files": file}, timeout=10).json()
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    ("values", "culprit"),
    [
        ({"seed": "abc"}, "eed"),
        ({"seed": [1]}, "eed"),
        ({"transpose": "x"}, "ranspose"),
        ({"semitones": [2]}, "emitones"),
        ({"output_rate": "loud"}, "utput_rate"),
        ({"pluck_repeat": {"a": 1}}, "luck_repeat"),
        ({"articulation": 7}, "rticulation"),
        ({"key": "x" * 100_000}, "key"),
        ({"instrument": "y" * 100_000}, "instrument"),
        ({"recording": "x"}, "recording"),
        ({"recording": {"path": None}}, "recording"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_value_is_named(server: str, tmp_path: Path, values: dict, culprit: str, capfd) -> None:
    voice = send(server, sing(tmp_path / "voice.wav", 220.0, 0.3))
    capfd.readouterr()
    events = ask(server, {"recording": voice, **values})
    sentence = json.loads(events.rpartition("data: ")[2])["error"]
    assert culprit in sentence and len(sentence) < 400 and "/" not in sentence
    assert "Traceback" not in "".join(capfd.readouterr())


def test_requests_that_crash_gradio_get_a_message(server: str, tmp_path: Path, capfd, caplog) -> None:
    for path, body in (
        ("queue/join", {"data": [], "fn_index": 999, "session_hash": "a"}),
        ("run/predict", {"data": [], "session_hash": "a"}),
        ("call/v2/transfer", {"nonsense": 1}),
    ):
        answer = requests.post(f"{server}gradio_api/{path}", json=body, timeout=10)
        assert answer.status_code == 400 and "cannot be understood" in answer.json()["detail"], path
    file = send(server, sing(tmp_path / "voice.wav", 220.0, 0.3))["path"]
    answer = requests.get(f"{server}gradio_api/file={file}", headers={"Range": "bytes=0-,0-"}, timeout=10)
    assert answer.status_code == 400
    assert "Traceback" not in "".join(capfd.readouterr()) and "/voice.wav" not in caplog.text


def test_internal_error_is_a_message_without_traceback(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog, capfd
) -> None:
    voice = send(server, sing(tmp_path / "voice.wav", 220.0, 0.3))
    monkeypatch.setattr(
        transfer_request, "transfer_measured", lambda *_: (_ for _ in ()).throw(RuntimeError("at /srv/page"))
    )
    events = ask(server, {"recording": voice})
    assert "try again" in json.loads(events.rpartition("data: ")[2])["error"] and "/srv" not in events
    assert "RuntimeError" in caplog.text and "/srv" not in caplog.text
    assert "Traceback" not in "".join(capfd.readouterr())


def test_visitor_who_reads_no_answers_does_not_block_the_queue(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, perform, seeds = threading.Event(), transfer_request.perform_transfer, []

    def note_seed(take, model, request, enter) -> object:
        release.wait(60)
        seeds.append(request.seed)
        return perform(take, model, request, enter)

    monkeypatch.setattr(transfer_request, "perform_transfer", note_seed)
    body = {"recording": send(server, sing(tmp_path / "voice.wav", 220.0, 0.3))}
    stranger = {"X-Forwarded-For": "203.0.113.7"}
    address = f"{server}gradio_api/call/v2/transfer"
    answers = [requests.post(address, json=body, headers=stranger, timeout=10) for _ in range(70)]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(refused) == 66 and {answer.status_code for answer in refused} == {429}
    assert "4 requests from your address" in refused[0].json()["detail"]
    other = requests.post(address, json={**body, "seed": 7}, timeout=10)
    threading.Timer(0.5, release.set).start()
    events = requests.get(f"{address}/{other.json()['event_id']}", timeout=60).text
    assert "event: complete" in events and seeds.index(7) == 1  # after the request that is running
    assert "event: complete" in ask(server, body, **stranger)  # the visitor may join again


def guarded(visitor: str, guard: OwnPageOnly) -> TestClient:
    return TestClient(guard, client=(visitor, 1), headers={"host": "127.0.0.1"})


def test_uploads_per_visitor_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(file_guard.time, "monotonic", lambda: now[0])
    limits = dataclasses.replace(LIMITS, max_megabytes_per_visitor=1, keep_seconds=60)
    guard = OwnPageOnly(PlainTextResponse("stored"), True, limits)

    def upload(visitor: str) -> int:
        files = {"files": bytes(400_000)}
        return guarded(visitor, guard).post("/gradio_api/upload", files=files).status_code

    assert [upload("10.0.0.1") for _ in range(3)] == [200, 200, 429]
    assert [upload(f"2001:db8::{n}") for n in range(3)] == [200, 200, 429]  # one network, one visitor
    assert [upload(f"::ffff:10.0.0.{n}") for n in range(1, 3)] == [429, 200]  # as an IPv6 socket names IPv4
    now[0] = 61.0
    assert upload("10.0.0.1") == 200


def test_simultaneous_requests_per_visitor_are_limited(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_guard, "_MAX_OPEN", 3)
    stranger = {"X-Forwarded-For": "203.0.113.8"}
    open_ones = [
        requests.get(f"{server}gradio_api/heartbeat/h{n}", headers=stranger, stream=True, timeout=10) for n in range(3)
    ]
    assert requests.get(f"{server}config", headers=stranger, timeout=10).status_code == 429
    assert requests.get(f"{server}config", timeout=10).status_code == 200
    for answer in open_ones:
        answer.close()


def test_memory_of_many_visits_is_limited(running: gr.Blocks, server: str) -> None:
    """Gradio stores 140 kB and the values of the controls per visit, for 10,000 visits by default."""
    assert running.state_holder.capacity <= 200 and file_guard._MAX_JSON <= 2**17
    answer = requests.post(
        f"{server}gradio_api/run/predict", json={"data": [], "fn_index": 1, "session_hash": "x" * 65}, timeout=10
    )
    assert answer.status_code == 403 and "session_hash" in answer.text


def connect(server: str, beginning: bytes = b"") -> socket.socket:
    at = urllib.parse.urlsplit(server)
    connection = socket.create_connection((at.hostname, at.port), timeout=5)
    connection.sendall(beginning)
    return connection


@pytest.mark.parametrize("beginning", [b"", b"GET / HTTP/1.1\r\nHost: 127", b"GET /x HTTP/1.1\r\nHost: x\r\n\r\nGET /"])
def test_a_connection_without_a_request_is_closed(server: str, monkeypatch, beginning: bytes) -> None:
    monkeypatch.setattr(file_guard, "_MAX_JSON_SECONDS", 0.5)
    with connect(server, beginning) as connection:
        while connection.recv(1000):  # an answer, if there was a request, and then the end
            pass


def test_a_long_answer_keeps_its_connection(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_guard, "_MAX_JSON_SECONDS", 0.1)
    with connect(server, b"GET /gradio_api/heartbeat/h HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") as connection:
        assert b"200 OK" in connection.recv(1000)
        connection.settimeout(1)
        with pytest.raises(TimeoutError):
            while connection.recv(1000):
                pass


def test_connections_without_a_request_are_limited(server: str, monkeypatch) -> None:
    monkeypatch.setattr(file_guard, "_MAX_SILENT", 3)
    silent = [connect(server) for _ in range(8)]
    silent[-1].sendall(b"GET /x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert b"404" in silent[-1].recv(1000)  # the newest is answered, the oldest are closed
    for connection in silent[:3]:
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
    for connection in silent:
        connection.close()


@pytest.mark.parametrize("patience", [60.0, 0.2])
def test_one_live_export_at_a_time_does_not_block_other_requests(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    release, exporting = threading.Event(), []
    (tmp_path / "graph.onnx").write_bytes(b"graph")

    def export(checkpoint: Path, folder: Path) -> Path:
        exporting.append(checkpoint)
        release.wait(20)
        return tmp_path / "graph.onnx"

    monkeypatch.setattr(live_page, "_MAX_WAIT", patience)
    monkeypatch.setattr(live_page, "find_live_graph", lambda *_: None)
    monkeypatch.setattr(live_page, "cached_live_graph", export)
    collection = transfer_request.ModelCollection(tmp_path, torch.device("cpu"))
    app_ = live_page.LivePage(PlainTextResponse("elsewhere"), collection)

    async def visit() -> tuple[int, list[int]]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app_), base_url="http://127.0.0.1") as visitor:
            waiting = [asyncio.create_task(visitor.get("/live/graphs/guitar.onnx", timeout=20)) for _ in range(60)]
            await asyncio.sleep(0.5)
            page = await asyncio.wait_for(visitor.get("/live/"), 5)
            assert len(exporting) == 1
            release.set()
            return page.status_code, [(await answer).status_code for answer in waiting]

    page, answers = asyncio.run(visit())
    assert page == 200 and answers == [200] * 60 if patience > 1 else sorted(answers) == [200] + [503] * 59


def begin_upload(server: str, length: int) -> http.client.HTTPConnection:
    """Send the beginning of an upload with the given length."""
    at = urllib.parse.urlsplit(server)
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=10)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(length))
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
    connection.endheaders(head + bytes(2**17))
    return connection


def is_stored(scratch: Path) -> bool:
    """Return True if part of an upload is stored within a second and stays."""
    time.sleep(1)
    return any(path.stat().st_size for path in (scratch / "gradio").glob("tmp*"))  # clients leave empty ones


def test_slow_upload_is_aborted(server: str, scratch: Path, monkeypatch) -> None:
    monkeypatch.setattr(file_guard, "_MAX_JSON_SECONDS", 0.5)
    monkeypatch.setattr(file_guard, "_SLOWEST_UPLOAD", 1e6)
    answer = begin_upload(server, 200_000).getresponse()
    assert (answer.status, answer.read()) == (400, b"the upload came too slowly")
    assert not is_stored(scratch)


def test_interrupted_upload_leaves_no_file(server: str, scratch: Path) -> None:
    connection = begin_upload(server, 200_000)
    assert is_stored(scratch)
    connection.close()
    assert not is_stored(scratch)


def test_an_upload_of_hundreds_of_files_is_refused(server: str, scratch: Path) -> None:
    files = [("files", (f"{n}.wav", b"x")) for n in range(900)]
    answer = requests.post(f"{server}gradio_api/upload", files=files, timeout=10)
    assert (answer.status_code, answer.text) == (400, "send one recording at a time")
    assert not is_stored(scratch)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "gradio_api/process_recording"),
        ("POST", "gradio_api/component_server"),
        ("POST", "gradio_api/component_server/"),
        ("POST", "gradio_api/run/transfer"),
        ("POST", "gradio_api/api/transfer"),
        ("POST", "gradio_api/stream/1"),
        ("POST", "gradio_api/vibe-code"),
        ("POST", "login"),
        ("GET", "gradio_api/file/http://127.0.0.1/x"),
        ("GET", "gradio_api/proxy=https://example.com"),
        ("GET", "gradio_api/stream/1/1/1/playlist.m3u8"),
        ("GET", "gradio_api/custom_component/1/client/component/index.js"),
        ("GET", "docs"),
        ("GET", "monitoring"),
        ("PUT", "gradio_api/upload"),
        ("OPTIONS", "gradio_api/process_recording"),
    ],
)
def test_unused_routes_return_404(server: str, method: str, path: str) -> None:
    answer = requests.request(method, server + path, timeout=10)
    assert (answer.status_code, answer.text) == (404, "there is nothing here")


def test_queue_cannot_be_bypassed(server: str) -> None:
    body = {"data": [None] * 16, "api_name": "transfer"}
    functions = requests.get(f"{server}config", timeout=10).json()["dependencies"]
    waiting = [number for number, function in enumerate(functions) if function["queue"] is not False]
    assert len(waiting) >= 2
    for number in waiting:
        answer = requests.post(f"{server}gradio_api/run/predict", json={**body, "fn_index": number}, timeout=10)
        assert answer.status_code == 404


@pytest.mark.parametrize("path", ["upload", "queue/join", "call/transfer", "run/predict", "cancel"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Host": "evil.example"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
        {"Host": "x.gradio.live"},
    ],
    ids=str,
)
def test_requests_from_other_sites_are_refused(server: str, path: str, headers: dict) -> None:
    files = {"files": ("a.wav", b"RIFF")} if path == "upload" else None
    answer = requests.post(f"{server}gradio_api/{path}", headers=headers, files=files, timeout=10)
    assert (answer.status_code, answer.text) == (403, "only this page itself may send anything here")


@pytest.mark.parametrize(
    ("is_local", "hosts", "headers", "status"),
    [
        (True, (), {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}, 200),
        (True, (), {"host": "localhost:7860", "origin": "http://localhost:7860"}, 200),
        (True, (), {"host": "[::1]:7860"}, 200),
        (False, ("me-voice.hf.space",), {"host": "10.0.0.1", "origin": "https://me-voice.hf.space"}, 200),
        (True, (".gradio.live",), {"host": "ab.gradio.live", "origin": "https://ab.gradio.live"}, 200),
        (False, (), {"host": "studio.example", "origin": "http://studio.example"}, 200),
        (False, ("me-voice.hf.space",), {"host": "me-voice.hf.space", "origin": "https://evil.example"}, 403),
        (True, (".gradio.live",), {"host": "evil.example"}, 403),
        (True, (), {"host": "localhost:7860", "origin": "http://[evil"}, 403),
    ],
)
def test_host_names_of_a_space_and_a_public_link_are_accepted(
    is_local: bool, hosts, headers: dict, status: int
) -> None:
    async def serve(scope, receive, send) -> None:
        await PlainTextResponse("served")(scope, receive, send)

    visitor = TestClient(OwnPageOnly(serve, is_local, LIMITS, hosts))
    assert visitor.post("/gradio_api/upload", headers=headers, files={"files": b"x"}).status_code == status


@pytest.mark.parametrize("path", ["queue/join", "cancel", "run/predict", "call/transfer", "reset"])
@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "application/octet-stream"])
def test_a_large_body_of_any_kind_is_refused(server: str, path: str, kind: str) -> None:
    answer = requests.post(
        f"{server}gradio_api/{path}", data=bytes(2**20 + 1), headers={"Content-Type": kind}, timeout=10
    )
    assert answer.status_code == 413


def test_upload_without_content_length_is_refused(server: str) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = requests.post(f"{server}gradio_api/upload", data=iter([b"--x\r\n"] * 9), headers=kind, timeout=10)
    assert answer.status_code == 411


def test_missing_body_times_out(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_guard, "_MAX_JSON_SECONDS", 0.5)
    at = urllib.parse.urlsplit(server)
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=10)
    connection.putrequest("POST", "/gradio_api/queue/join")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b"{")
    assert connection.getresponse().status == 408


def test_duplicate_content_type_is_refused(server: str) -> None:
    body = json.dumps({"recording": {"path": "https://example.com/x.wav", "meta": {"_type": "gradio.FileData"}}})
    at = urllib.parse.urlsplit(server)
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=10)
    connection.putrequest("POST", "/gradio_api/call/v2/transfer")
    for kind in ("application/json", "multipart/form-data"):
        connection.putheader("Content-Type", kind)
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body.encode())
    assert connection.getresponse().status == 403


@pytest.mark.parametrize("address", ["https://example.com/x.wav", "http:%2f%2fexample.com", "%20HTTPS://example.com"])
def test_urls_are_not_forwarded(server: str, address: str) -> None:
    answer = requests.get(f"{server}gradio_api/file={address}", timeout=10)
    assert (answer.status_code, answer.text) == (403, "only this page's own files are served")


def test_urls_inside_a_request_are_not_fetched(server: str, bait: str) -> None:
    hidden = '{"recording": {"p\\u0061th": "\\u0068ttp://127.0.0.1/x.wav", "meta": {"_type": "gradio.FileData"}}}'
    for kind in ("application/json", "text/plain", ""):
        answer = requests.post(
            f"{server}gradio_api/call/v2/transfer", data=hidden, headers={"Content-Type": kind}, timeout=10
        )
        assert answer.status_code == 403
    deep = "[" * 100_000 + "]" * 100_000
    assert requests.post(f"{server}gradio_api/call/v2/transfer", data=deep, timeout=10).status_code >= 400
    assert requests.post(f"{server}gradio_api/call/v2/transfer", data="x" * 2**21, timeout=10).status_code == 413


@pytest.mark.parametrize(
    "name", ["../../../evil.wav", "/etc/evil.wav", "a\\..\\b.wav", '"><script>.wav', ".wav", "é.wav"]
)
def test_hostile_file_name_stays_in_the_folder(server: str, scratch: Path, tmp_path: Path, name: str) -> None:
    voice = sing(tmp_path / "voice.wav", 220.0, 0.4).read_bytes()
    answer = requests.post(f"{server}gradio_api/upload", files={"files": (name, voice)}, timeout=10)
    (path,) = answer.json()
    assert Path(path).resolve().is_relative_to((scratch / "gradio").resolve())
    payload = {"path": path, "meta": {"_type": "gradio.FileData"}}
    joined = requests.post(f"{server}gradio_api/call/v2/transfer", json={"recording": payload}, timeout=10).json()
    events = requests.get(f"{server}gradio_api/call/v2/transfer/{joined['event_id']}", timeout=60).text
    assert "event: complete" in events
    sound = json.loads(events.rpartition("data: ")[2])[0]
    assert re.fullmatch(r"[\w.-]+_guitar\.wav", sound["orig_name"]) and "script>" not in sound["path"]


def test_an_upload_that_is_too_large_is_refused(server: str) -> None:
    answer = requests.post(f"{server}gradio_api/upload", files={"files": ("a.wav", bytes(1_500_000))}, timeout=10)
    assert answer.status_code == 413


def test_visitors_cannot_see_each_other(server: str) -> None:
    for path in ("monitoring", "gradio_api/runs", "gradio_api/monitoring", "monitoring/summary"):
        assert requests.get(server + path, timeout=10).status_code in (403, 404), path
    config = requests.get(f"{server}config", timeout=10).json()
    assert not config.get("run_history") and config.get("enable_queue", True)


# --- the command line -----------------------------------------------------------------------------


def test_a_port_in_use_is_one_sentence_and_exit_1(tmp_path: Path, caplog, capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert app.main(["--port", str(port), "--checkpoint_dir", str(tmp_path), "--device", "cpu"]) == 1
    assert caplog.messages == [f"app.py: port {port} is in use; stop what runs there, or choose another with --port"]
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("port", ["abc", "0", "65536", "-1"])
def test_invalid_port_in_the_environment_is_one_sentence(port: str) -> None:
    environment = {**os.environ, "GRADIO_SERVER_PORT": port}
    done = subprocess.run([sys.executable, "app.py"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and f"'{port}'" in done.stderr


def test_a_checkpoint_that_cannot_be_read_is_one_sentence(tmp_path: Path, caplog) -> None:
    missing = tmp_path / "best.pth"
    assert app.main(["--checkpoint", str(missing), "--device", "cpu"]) == 1
    assert str(missing) in caplog.messages[-1]


@pytest.mark.parametrize(
    "given",
    [
        {"http_proxy": "http://127.0.0.1:1", "all_proxy": "socks5://127.0.0.1:1", "GRADIO_SERVER_NAME": ""},
        {"all_proxy": "socks://127.0.0.1:1", "no_proxy": "example.org", "GRADIO_SERVER_PORT": ""},
    ],
)
def test_starts_with_any_proxy_and_empty_variables(tmp_path: Path, given: dict[str, str]) -> None:
    code = "import sys, app; page = app.build_ui(sys.argv[1]); limits = app.load_config().page; "
    code += f"print(app.launch(page, limits, None, {free_port()})); page.close(verbose=False)"
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()} | given
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "http://127.0.0.1:" in done.stdout, done.stderr


def test_ctrl_c_leaves_cleanly(tmp_path: Path, caplog, monkeypatch: pytest.MonkeyPatch) -> None:
    port, launched, launch = free_port(), threading.Event(), app.launch
    monkeypatch.setattr(app, "launch", lambda *a: (launch(*a), launched.set())[0])

    def press() -> None:
        launched.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background inherits "ignore"
    threading.Thread(target=press).start()
    try:
        assert app.main(["--port", str(port), "--checkpoint_dir", str(tmp_path), "--device", "cpu"]) == 130
    except KeyboardInterrupt:
        pytest.fail("Ctrl-C came through")
    finally:
        signal.signal(signal.SIGINT, previous)
    assert caplog.messages[-1] == "app.py: stopped"
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", port)) != 0  # the port is free again


@pytest.mark.parametrize("wanted", ["0", "-1", "65536"])
def test_invalid_port_is_refused(capsys, wanted: str) -> None:
    with pytest.raises(SystemExit):
        app.parse_args(["--port", wanted])
    assert "--port should be between 1 and 65535" in capsys.readouterr().err


@pytest.mark.parametrize("wanted", ["0", "-1", "nan", "inf"])
def test_invalid_max_seconds_is_refused(capsys, wanted: str) -> None:
    with pytest.raises(SystemExit):
        app.parse_args(["--max_seconds", wanted])
    assert "--max_seconds" in capsys.readouterr().err


# --- as a Space runs it ---------------------------------------------------------------------------

# Block all connections to other machines, and record the attempts.
_WALL = """
import os, socket
def _inside(address):
    host = address[0] if isinstance(address, tuple) else ""
    return not isinstance(address, tuple) or host in ("localhost", "0.0.0.0", "::1") or str(host).startswith("127.")
def _guard(name):
    original = getattr(socket.socket, name)
    def connect(self, address):
        if not _inside(address):
            open(os.environ["WALL"], "a").write(f"{address}\\n")
            raise OSError("no network here")
        return original(self, address)
    setattr(socket.socket, name, connect)
_guard("connect"); _guard("connect_ex")
_look_up = socket.getaddrinfo
def getaddrinfo(host, *rest, **named):
    if host not in (None, "localhost", "0.0.0.0", "::1") and not str(host).startswith("127."):
        open(os.environ["WALL"], "a").write(f"{host}\\n")
        raise socket.gaierror("no network here")
    return _look_up(host, *rest, **named)
socket.getaddrinfo = getaddrinfo
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_starts_as_a_space_without_network_within_2_gb(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_WALL)
    port = free_port()
    space = {
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_SERVER_PORT": str(port),
        "SPACE_ID": "user/space",
        "SYSTEM": "spaces",
        "PYTHONPATH": str(tmp_path),
        "WALL": str(tmp_path / "wall"),
        "CUDA_VISIBLE_DEVICES": "",
        "GRADIO_TEMP_DIR": str(tmp_path / "gradio"),
    }
    process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env={**os.environ, **space})
    try:
        client = wait_for_client(f"http://127.0.0.1:{port}", process)
        sound, *_ = client.predict(handle_file(ROOT / "examples" / "hum.wav"), api_name="/transfer")
        assert hear(sound) > 100
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        assert int(peak.group(1)) < 2_000_000
        assert any((tmp_path / "gradio").glob("*/gradio/*/hum_*.wav"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
        assert not any((tmp_path / "gradio").glob("vox2*"))
    finally:
        process.kill()
    assert not (tmp_path / "wall").exists(), (tmp_path / "wall").read_text()


def wait_for_client(address: str, process: subprocess.Popen) -> Client:
    for _ in range(600):
        assert process.poll() is None, "the server did not come up"
        try:
            requests.get(address, timeout=5)
            break
        except requests.RequestException:  # it may also be slow to answer for the first time
            time.sleep(0.1)
    return Client(address, verbose=False)


def test_readme_has_the_front_matter_of_a_space() -> None:
    text = (ROOT / "README.md").read_text()
    fields = dict(re.findall(r"^(\w+): *(.+)$", text.split("---")[1], flags=re.M))
    pins = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().split() if "==" in line)
    assert text.startswith("---\n") and fields["sdk"] == "gradio" and fields["sdk_version"] == pins["gradio"]
    assert fields["python_version"] == '"3.11"' and fields["license"] == "mit"
    assert (ROOT / fields["app_file"]).is_file() and len(fields["short_description"]) <= 60
    assert {fields["colorFrom"], fields["colorTo"]} <= {
        "red",
        "yellow",
        "green",
        "blue",
        "indigo",
        "purple",
        "pink",
        "gray",
        "orange",
    }
