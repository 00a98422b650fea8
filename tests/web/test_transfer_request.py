"""web/transfer_request.py: the list of instruments, and a request from a recording to files, without a page."""

import dataclasses
import io
import os
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from config import load_config
from conftest import write_notes
from page import RATE, cents, hear, save_untrained, sing
from playing.loudness import measure_loudness, measure_true_peak
from voice.instrument_fit import TransferOptions
from web import transfer_request
from web.transfer_request import (
    STEPS,
    ModelCollection,
    TakeCache,
    TransferOutcome,
    TransferRequest,
    TransferService,
    answer_request,
    explain_failure,
    read_model_card,
    write_package,
    write_sounds,
)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory):
    """Replace checkpoints/pretrained by a folder with a guitar and a trumpet."""
    folder = tmp_path_factory.mktemp("pretrained")
    save_untrained(folder / "guitar.pth", "guitar")
    save_untrained(folder / "trumpet.pth", "trumpet")
    (folder / "guitar.md").write_text("# The card of the guitar")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer_request, "PRETRAINED_DIR", folder)
        yield folder


@pytest.fixture
def collection(shipped: Path, tmp_path: Path) -> ModelCollection:
    return ModelCollection(tmp_path, torch.device("cpu"))


@pytest.fixture
def service(collection: ModelCollection) -> TransferService:
    return TransferService(collection, dataclasses.replace(load_config().page, max_seconds=3.0))


def request(voice: Path | None, folder: Path, instrument: str = "guitar", seed: int = 0, **options) -> TransferRequest:
    return TransferRequest(str(voice) if voice else None, instrument, TransferOptions(**options), seed, folder)


def outcome_of(service: TransferService, sent: TransferRequest) -> TransferOutcome:
    *_, outcome = answer_request(service, sent)
    return outcome


# --- instruments ----------------------------------------------------------------------------------


def test_trainings_are_listed_newest_first_and_best_before_latest(collection: ModelCollection) -> None:
    assert [one.name for one in collection.find()] == ["trumpet", "guitar"]
    root = collection.checkpoint_dir
    save_untrained(root / "a" / "latest.pth", "oboe", epoch=3, when=2e9)
    save_untrained(root / "a" / "best.pth", "oboe", epoch=2, when=1.5e9)
    save_untrained(root / "b" / "c" / "best.pth", "flute", epoch=5, when=1.9e9)
    save_untrained(root / "latest.pth", "tuba", epoch=4, when=1e9, position_in_epoch=8)
    found = collection.find()
    assert [one.name for one in found] == ["trumpet", "guitar", "a/best", "a/latest", "b/c/best", "latest"]
    day = time.strftime("%d %b %Y", time.localtime(2e9))
    assert all(part in found[3].label for part in ("Oboe", "a/latest", "epoch 3", day))
    assert "epoch 5" in found[-1].label  # it is in the fifth
    save_untrained(root / "a" / "latest.pth", "oboe", epoch=6, when=2.1e9)
    assert "epoch 6" in collection.find()[3].label
    assert collection.choose("").sound == "trumpet" and collection.choose("a/best").sound == "oboe"


@pytest.mark.parametrize(
    ("epoch", "best", "first", "preselected"),
    [(11, 1.0, 2.0, "a/best"), (10, 1.0, 2.0, "trumpet"), (11, 1.1, 2.0, "trumpet"), (11, 1.0, None, "trumpet")],
)
def test_training_is_preselected_if_trained_enough(
    collection: ModelCollection, epoch: int, best: float, first: float | None, preselected: str
) -> None:
    metrics = {"best_val_loss": best, "first_val_loss": first}
    save_untrained(collection.checkpoint_dir / "a" / "best.pth", "oboe", epoch=epoch, metrics=metrics)
    assert collection.find()[0].name == preselected


def test_a_training_whose_best_is_of_an_early_epoch_is_preselected(collection: ModelCollection) -> None:
    metrics = {"best_val_loss": 1.0, "first_val_loss": 2.0}
    for name, epoch in (("best", 8), ("latest", 11)):
        save_untrained(collection.checkpoint_dir / "a" / f"{name}.pth", "oboe", epoch=epoch, metrics=metrics)
    assert collection.find()[0].name == "a/best"
    save_untrained(collection.checkpoint_dir / "b" / "latest.pth", when=2e9)  # a newer one, not trained yet
    assert collection.find()[0].name == "trumpet"


def test_checkpoint_of_the_command_line_is_listed_first(collection: ModelCollection) -> None:
    collection.checkpoint = save_untrained(collection.checkpoint_dir / "best.pth", "oboe")
    found = collection.find()
    assert [one.name for one in found] == ["checkpoint", "trumpet", "guitar"] and found[0].sound == "oboe"
    assert collection.choose("").path == collection.checkpoint


def test_damaged_training_is_skipped(collection: ModelCollection, caplog) -> None:
    (collection.checkpoint_dir / "latest.pth").write_bytes(b"half")
    assert [one.name for one in collection.find()] == ["trumpet", "guitar"]
    assert "is damaged" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"instrument": ["trumpet"]},
        {"instrument": "<b>x"},
        {"epoch": "x"},
        {"metrics": {"first_val_loss": "x", "best_val_loss": 1.0}},
        {"metrics": []},
    ],
)
def test_training_with_an_invalid_description_is_skipped(collection: ModelCollection, change: dict, caplog) -> None:
    path = save_untrained(collection.checkpoint_dir / "latest.pth", epoch=11)
    torch.save({**torch.load(path, weights_only=True), **change}, path)
    assert [one.name for one in collection.find()] == ["trumpet", "guitar"]
    assert next(iter(change)) in caplog.text or "first_val_loss" in caplog.text


def test_a_training_without_a_validation_loss_is_offered(collection: ModelCollection) -> None:
    save_untrained(collection.checkpoint_dir / "best.pth", epoch=11, metrics={"best_val_loss": None})
    assert [one.name for one in collection.find()] == ["trumpet", "guitar", "best"]


def test_a_model_is_loaded_once_until_its_file_changes(collection: ModelCollection) -> None:
    path = save_untrained(collection.checkpoint_dir / "latest.pth", when=1e9)
    first = collection.load(collection.choose("latest"))
    assert collection.load(collection.choose("latest")) is first
    os.utime(path, (1.1e9, 1.1e9))
    assert collection.load(collection.choose("latest")) is not first


def test_an_unknown_instrument_is_named_with_those_there_are(collection: ModelCollection) -> None:
    with pytest.raises(ValueError, match=r"no instrument 'kazoo' \(there is trumpet, guitar\)"):
        collection.choose("kazoo")


def test_card_is_read_from_the_folder_of_the_model(collection: ModelCollection) -> None:
    assert read_model_card(collection.choose("guitar")) == "# The card of the guitar"
    save_untrained(collection.checkpoint_dir / "latest.pth")
    assert "has no model card" in read_model_card(collection.choose("latest"))


# --- one request ----------------------------------------------------------------------------------


def test_the_steps_come_in_order_and_the_outcome_last(service: TransferService, tmp_path: Path) -> None:
    *steps, outcome = answer_request(service, request(sing(tmp_path / "a.wav", 220.0), tmp_path))
    assert steps == sorted(steps) and set(steps) <= set(range(len(STEPS)))
    assert outcome.sound == "guitar" and outcome.report["instrument"] == "guitar"
    assert len(outcome.voice_f0) == len(outcome.curves.f0) and np.isfinite(outcome.voice_loudness)


def test_current_step_is_reported(service: TransferService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {step: threading.Event() for step in (transfer_request.LISTEN, transfer_request.PLAY)}

    def perform(*arguments: object) -> None:
        for step in seen:
            arguments[-1](step)
            assert seen[step].wait(30)
        raise ValueError("the recording is silent")

    monkeypatch.setattr(transfer_request, "perform_transfer", perform)
    with pytest.raises(ValueError, match="is silent"):
        for step in answer_request(service, request(sing(tmp_path / "a.wav", 220.0), tmp_path)):
            seen.get(step, threading.Event()).set()


def test_files_are_named_after_the_recording_and_stems_add_up(service: TransferService, tmp_path: Path) -> None:
    sent = request(sing(tmp_path / "My song!.wav", 220.0), tmp_path)
    files = write_sounds(outcome_of(service, sent), sent)
    assert [path.name for path in files] == [
        "My_song__guitar.wav",
        "My_song__guitar_harmonic.wav",
        "My_song__guitar_noise.wav",
    ]
    sound, harmonic, noise = (soundfile.read(path)[0] for path in files)
    assert np.abs(harmonic + noise - sound).max() < 1e-6  # 24 bits each
    assert all(path.parent == tmp_path for path in files)


@pytest.mark.parametrize("name", ["../../evil", "-rf", "a\nb", "'; rm -rf ~", "é" * 100, "…", "x" * 200, "%2e%2e"])
def test_names_of_recordings_stay_in_the_folder(service: TransferService, tmp_path: Path, name: str) -> None:
    outcome = TransferOutcome("guitar", {"": np.zeros(160)}, RATE, None, np.zeros(1), np.zeros(1), [], None, 0.0, {})
    (path,) = write_sounds(outcome, request(Path(f"/somewhere/{name}.wav"), tmp_path))
    assert path.parent == tmp_path and path.is_file()
    assert not set(path.name) & set("/\\ ;'\n%…") and len(path.name.encode()) < 200


def test_options_change_the_sound(service: TransferService, tmp_path: Path) -> None:
    voice = sing(tmp_path / "a.wav", 220.0)
    plain, shifted = (outcome_of(service, request(voice, tmp_path, transpose=step)) for step in (0, 7))
    sung = plain.curves.voiced
    assert shifted.curves.f0[sung] == pytest.approx(plain.curves.f0[sung] * 2 ** (7 / 12))
    louder = outcome_of(service, request(voice, tmp_path, noise_balance=12.0))
    gains = [one.report["peak_gain"] + one.report["normalization_gain"] for one in (plain, louder)]
    noise = [20 * np.log10(one.stems["_noise"].std()) - gain for one, gain in zip((plain, louder), gains)]
    assert noise[1] - noise[0] == pytest.approx(12, abs=0.5)
    faster = outcome_of(service, request(voice, tmp_path, output_rate=48000))
    assert faster.sample_rate == 48000 and len(faster.stems[""]) == 3 * len(plain.stems[""])


def test_recording_is_measured_once_for_all_options(
    service: TransferService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, measure = [], transfer_request.measure_blocks
    monkeypatch.setattr(transfer_request, "measure_blocks", lambda *given: measured.append(0) or measure(*given))
    voice = sing(tmp_path / "a.wav", 220.0)
    first = outcome_of(service, request(voice, tmp_path))
    again = outcome_of(service, request(voice, tmp_path))
    outcome_of(service, request(voice, tmp_path, "trumpet", gate_offset=3.0, autotune=1.0, harmony="third"))
    assert len(measured) == 1 and np.array_equal(first.stems[""], again.stems[""])
    outcome_of(service, request(sing(tmp_path / "a.wav", 230.0), tmp_path))  # another recording of that name
    assert len(measured) == 2


def test_cache_of_measurements_is_limited() -> None:
    cache = TakeCache(limit=2)
    for key in "abc":
        cache.keep((key,), key)
        cache.find(("a",))
    assert [cache.find((key,)) for key in "abc"] == ["a", None, "c"]


def test_result_is_normalized_unless_as_played(service: TransferService, tmp_path: Path) -> None:
    sent = request(sing(tmp_path / "a.wav", 220.0), tmp_path, "trumpet")
    loud, plain = (outcome_of(service, dataclasses.replace(sent, normalize=wanted)) for wanted in (True, False))
    assert measure_loudness(loud.stems[""], RATE) == pytest.approx(-16, abs=1)
    assert measure_true_peak(loud.stems[""]) < -1 and "normalization_gain" not in plain.report
    ratio = loud.stems["_harmonic"] / np.where(plain.stems["_harmonic"] == 0, np.inf, plain.stems["_harmonic"])
    assert ratio.max() > 1.5


def test_zip_holds_all_files(service: TransferService, tmp_path: Path) -> None:
    sent = request(sing(tmp_path / "a.wav", 220.0), tmp_path, output_rate=44100)
    with zipfile.ZipFile(write_package(outcome_of(service, sent), sent)) as package:
        names = set(package.namelist())
        sounds = [io.BytesIO(package.read(name)) for name in names if name.endswith(".wav")]
    rates = {soundfile.info(sound).samplerate for sound in sounds}
    parts = ("", "_harmonic", "_noise")
    expected = {f"a_guitar{part}.wav" for part in parts} | {"a_voice.wav", "a_guitar.mid", "a_guitar_curves.csv"}
    assert names == expected | {"a_guitar.png", "a_guitar_report.json"} and rates == {44100}


def test_notes_and_curves_are_played_up_to_the_limit(service: TransferService, tmp_path: Path) -> None:
    sent = request(write_notes(tmp_path / "a.mid", [60, 64]), tmp_path)
    assert not np.isfinite(outcome_of(service, sent).voice_loudness)
    rows = "".join(f"{t / 100:.2f},220,-20,1,1\n" for t in range(400))
    (tmp_path / "long.csv").write_text(f"time,f0,loudness,periodicity,voiced\n{rows}")
    for name in ("long.csv", write_notes(tmp_path / "long.mid", [60] * 30).name):
        with pytest.raises(ValueError, match=f"{name} lasts longer"):
            outcome_of(service, request(tmp_path / name, tmp_path))


def test_a_cancelled_request_stops_at_its_next_step(
    service: TransferService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release, left = threading.Event(), threading.Event(), threading.Event()

    def slow_play(*arguments: object) -> None:
        begun.set()
        release.wait(30)
        try:
            arguments[-1](2)
        except transfer_request.RequestCancelled:
            left.set()
            raise

    monkeypatch.setattr(transfer_request, "perform_transfer", slow_play)
    steps = answer_request(service, request(sing(tmp_path / "a.wav", 220.0), tmp_path))
    while not begun.is_set():
        next(steps)
    steps.close()
    release.set()
    assert left.wait(30)


def test_request_time_is_limited(service: TransferService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_request, "perform_transfer", lambda *_: threading.Event().wait())
    limits = dataclasses.replace(service.limits, max_request_seconds=0.3)
    impatient = dataclasses.replace(service, limits=limits)
    with pytest.raises(TimeoutError) as raised:
        list(answer_request(impatient, request(sing(tmp_path / "a.wav", 220.0), tmp_path)))
    assert explain_failure(raised.value, None) == "This took too long, so I stopped. Try a shorter recording."


# --- what cannot be played ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sound", "sentence"),
    [
        (np.zeros(RATE), "I hear only silence"),
        (0.01 * np.random.default_rng(0).standard_normal(RATE), "I could not hear a melody"),
        (np.zeros(4 * RATE), "This recording is too long"),
        (0.5 * np.sin(2 * np.pi * 6000 * np.arange(RATE) / RATE), "5200 Hz"),
        (np.zeros(0), "The recording is empty"),
        (np.full(RATE, np.nan), "not finite"),
    ],
    ids=["silence", "noise", "too long", "too high", "empty", "not finite"],
)
def test_unplayable_recording_gets_a_friendly_sentence(
    service: TransferService, tmp_path: Path, sound: np.ndarray, sentence: str
) -> None:
    path = tmp_path / "voice.wav"
    soundfile.write(path, sound, RATE, subtype="FLOAT")
    with pytest.raises(ValueError) as raised:
        list(answer_request(service, request(path, tmp_path)))
    said = explain_failure(raised.value, str(path))
    assert sentence in said and said[0].isupper() and said.endswith((".", "?")) and str(tmp_path) not in said


def test_text_file_and_missing_file_are_refused(service: TransferService, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("no sound")
    for voice, sentence in ((tmp_path / "a.wav", "not a sound file"), (None, "There is no recording yet")):
        with pytest.raises(ValueError) as raised:
            list(answer_request(service, request(voice, tmp_path)))
        assert sentence in explain_failure(raised.value, voice and str(voice))


def test_a_small_file_of_many_hours_is_refused_at_once(service: TransferService, tmp_path: Path) -> None:
    with soundfile.SoundFile(tmp_path / "hours.flac", "w", 8000, 8, "PCM_16") as file:
        for _ in range(60):
            file.write(np.zeros((8000 * 60, 8), dtype=np.int16))
    assert (tmp_path / "hours.flac").stat().st_size < 1e6
    with pytest.raises(ValueError, match="lasts longer"):
        list(answer_request(service, request(tmp_path / "hours.flac", tmp_path)))


@pytest.mark.parametrize("claimed", [0xFFFFFFFF, 0x7FFFFFFF, 10])
def test_wav_with_a_wrong_length_is_played(service: TransferService, tmp_path: Path, claimed: int) -> None:
    content = bytearray(sing(tmp_path / "a.wav", 220.0).read_bytes())
    content[40:44] = claimed.to_bytes(4, "little")
    (tmp_path / "lie.wav").write_bytes(content)
    try:
        outcome = outcome_of(service, request(tmp_path / "lie.wav", tmp_path))
    except ValueError as error:
        assert explain_failure(error, str(tmp_path / "lie.wav"))
    else:
        assert len(outcome.stems[""]) <= 3 * RATE


@pytest.mark.parametrize("rate", [1, 0x7FFFFFFF])
def test_wav_with_an_impossible_sample_rate_is_refused(service: TransferService, tmp_path: Path, rate: int) -> None:
    content = bytearray(sing(tmp_path / "a.wav", 220.0).read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    (tmp_path / "lie.wav").write_bytes(content)
    with pytest.raises(ValueError):
        list(answer_request(service, request(tmp_path / "lie.wav", tmp_path)))


def test_a_seed_out_of_bounds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the seed should be between"):
        request(None, tmp_path, seed=-1)


def test_errors_show_no_path_of_the_server(caplog) -> None:
    for error in (
        ValueError("/secret/a.wav is a folder, a sound file is expected"),
        FileNotFoundError("there is no file /secret/a.wav"),
        OSError(28, "No space left on device", "/secret/b.wav"),
        ValueError("/secret/place/latest.pth holds weights of another architecture"),
    ):
        sentence = explain_failure(error, "/secret/a.wav")
        assert "secret" not in sentence and sentence[0].isupper() and sentence.endswith(".")
    assert "b.wav" in caplog.text  # the log names it


def test_name_of_a_recording_is_not_mistaken_for_a_reason() -> None:
    error = ValueError("/a/no melody.wav cannot be read as sound (its format is not known)")
    assert explain_failure(error, "/a/no melody.wav").startswith("This is not a sound file")


def test_a_melody_is_played_in_tune(service: TransferService, tmp_path: Path) -> None:
    sent = request(sing(tmp_path / "a.wav", 233.1, 0.6), tmp_path, semitones=5)
    sound, *_ = write_sounds(outcome_of(service, sent), sent)
    assert cents(hear(sound), 233.1 * 2 ** (5 / 12)) < 10
