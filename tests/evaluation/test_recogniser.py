"""evaluation/recogniser.py: its training record, its figures, and refused input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation import train_recogniser
from evaluation.recogniser import CLASSES, INSTRUMENTS, OTHER, SAMPLE_RATE, WEIGHTS, load_recogniser, recognise
from evaluation.recorded_notes import HELD_OUT, RECOGNISER, read_name


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads(WEIGHTS.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def tone() -> np.ndarray:
    time = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    return (0.1 * np.sin(2 * np.pi * 300 * time) * (1 + np.sin(2 * np.pi * time))).astype(np.float32)


def test_training_files_are_in_no_model_and_no_test(record: dict) -> None:
    roles = {name: {read_name(Path(name)).role for name in record[name]} for name in ("trained_on", "tested_on")}
    assert roles == {"trained_on": {RECOGNISER}, "tested_on": {HELD_OUT}}
    assert not set(record["trained_on"].values()) & set(record["tested_on"].values())
    assert {read_name(Path(name)).instrument for name in record["trained_on"]} == set(INSTRUMENTS)


@pytest.mark.parametrize(
    "name",
    [
        "philharmonia notes",
        "philharmonia melodies",
        "shiny notes",
        "shiny melodies",
        "freepats notes",
        "freepats melodies",
    ],
)
def test_unseen_recordings_are_recognised(record: dict, name: str) -> None:
    right = [figures["right"] for figures in record["figures"][name].values()]
    assert np.mean(right) >= 0.75


@pytest.mark.xfail(reason="few recordings of soft trumpets train it; the figures are in recogniser.json", strict=True)
@pytest.mark.parametrize("name", ["vsco notes", "vsco melodies"])
def test_a_trumpet_in_another_room_is_recognised(record: dict, name: str) -> None:
    assert all(figures["right"] >= 0.75 for figures in record["figures"][name].values())


def test_tones_without_timbre_are_other() -> None:
    tones = train_recogniser.make_tones(3, np.random.default_rng(99)).melodies
    assert recognise(np.concatenate(tones), SAMPLE_RATE).shares[OTHER] >= 0.9


@pytest.mark.parametrize("instrument", ["trumpet", "guitar", "saxophone", "violin", "flute"])
def test_untrained_models_are_not_recognised(instrument: str) -> None:
    results = json.loads((WEIGHTS.parents[1] / "docs" / "results" / f"{instrument}.json").read_text())
    recognised = {row["sound"]: row["recognised"] for row in results["resynthesis"]}
    assert recognised["untrained model"] <= 25


def test_weights_are_small_and_the_confusion_adds_up(record: dict) -> None:
    assert WEIGHTS.stat().st_size < 2**20
    for name, matrix in record["confusion"].items():
        figures = record["figures"][name]
        for instrument, row in zip(INSTRUMENTS, matrix):
            assert sum(row) == figures.get(instrument, {"windows": 0})["windows"]


def test_recognition_is_deterministic(tone: np.ndarray) -> None:
    assert recognise(tone, SAMPLE_RATE) == recognise(tone, SAMPLE_RATE)


def test_shares_sum_to_1(tone: np.ndarray) -> None:
    recognition = recognise(tone, SAMPLE_RATE)
    assert tuple(recognition.shares) == tuple(recognition.probability) == CLASSES
    assert sum(recognition.shares.values()) == pytest.approx(1)
    assert sum(recognition.probability.values()) == pytest.approx(1)
    assert recognition.n_windows == 9


def test_level_and_rate_matter_little(tone: np.ndarray) -> None:
    loud, quiet = recognise(tone, SAMPLE_RATE), recognise(0.05 * tone, SAMPLE_RATE)
    assert quiet.probability == pytest.approx(loud.probability, abs=0.01)
    time = np.arange(3 * 48000) / 48000
    wide = 0.1 * np.sin(2 * np.pi * 300 * time) * (1 + np.sin(2 * np.pi * time))
    assert recognise(wide, 48000).probability == pytest.approx(loud.probability, abs=0.05)


def test_pauses_are_skipped(tone: np.ndarray) -> None:
    pause = np.zeros(5 * SAMPLE_RATE, np.float32)
    assert recognise(np.concatenate([tone, pause]), SAMPLE_RATE).n_windows < 14


@pytest.mark.parametrize(
    ("audio", "sample_rate", "reason"),
    [
        (np.ones(15000), SAMPLE_RATE, "0.94 s"),
        (np.zeros(0), SAMPLE_RATE, "0.00 s"),
        (np.zeros(32000), SAMPLE_RATE, "silent"),
        (np.full(32000, np.nan), SAMPLE_RATE, "finite"),
        (np.ones(32000), 8000, "8000"),
    ],
    ids=["short", "empty", "silent", "not finite", "low rate"],
)
def test_unusable_sound_is_refused(audio: np.ndarray, sample_rate: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        recognise(audio, sample_rate)


def test_missing_and_foreign_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.pt"):
        load_recogniser(tmp_path / "missing.pt")
    torch.save({"model": {}}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match=r"foreign\.pt"):
        load_recogniser(tmp_path / "foreign.pt")


def test_two_trainings_from_one_seed_are_equal() -> None:
    rng = np.random.default_rng(0)
    room = train_recogniser.Library(
        [rng.standard_normal(40000).astype(np.float32)], [rng.standard_normal(9000).astype(np.float32)]
    )
    libraries = [[room, room]] * len(CLASSES)
    (spectra, labels), again = (train_recogniser.make_examples(libraries, 60, seed=1) for _ in range(2))
    assert torch.equal(spectra, again[0]) and torch.equal(labels, again[1]) and len(labels) == 60
    first, second = (train_recogniser.train(spectra, labels, 2, 12, seed=1) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters()))
