"""recordings/corpus.py: the split into training and validation, the index, and the statistics."""

import numpy as np
import pytest

from data import load_recording, save_recording
from recordings import corpus
from recordings.corpus import RECORDING_ENDS, measure_statistics, read_corpus
from recordings.crops import Span
from test_data import with_train


def frames_of(spans):
    return {(span.path, frame) for span in spans for frame in range(span.first_frame, span.first_frame + span.n_frames)}


def sounds_of(spans):
    return {load_recording(span.path).source["sha256"] for span in spans}


def test_mixed_instruments_are_refused(tmp_path, config, counting_recording):
    save_recording(tmp_path / "a.pt", counting_recording(10, "a", "trumpet"))
    save_recording(tmp_path / "b.pt", counting_recording(10, "b", "oboe"))
    with pytest.raises(ValueError, match=r"mixes instruments: trumpet \(a\.pt\), oboe \(b\.pt\); .*a folder for each"):
        read_corpus(tmp_path, config)


@pytest.mark.parametrize("n_takes", [5, 34])
def test_whole_takes_are_held_out(write_takes, config, n_takes):
    corpus = read_corpus(write_takes([f"{i:064x}" for i in range(n_takes)]), config)
    assert corpus.instrument == "trumpet"
    assert len(corpus.validation) == max(1, round(0.1 * n_takes))
    assert len(corpus.training) + len(corpus.validation) == n_takes
    assert not {span.path for span in corpus.training} & {span.path for span in corpus.validation}
    assert all((span.first_frame, span.n_frames) == (0, 200) for span in corpus.training + corpus.validation)


def test_copies_of_a_take_stay_on_one_side(write_takes, config):
    digests = [f"{i % 7:064x}" for i in range(28)]  # seven takes, four copies of each
    corpus = read_corpus(write_takes(digests), with_train(config, val_fraction=0.4))
    training, validation = sounds_of(corpus.training), sounds_of(corpus.validation)
    assert (len(training), len(validation)) == (4, 3)
    assert not training & validation
    assert (len(corpus.training), len(corpus.validation)) == (16, 12)


@pytest.mark.parametrize("n_takes", [1, 4])
def test_the_ends_of_few_takes_are_held_out(write_takes, config, n_takes):
    folder = write_takes([f"{i:064x}" for i in range(n_takes)])
    whole = read_corpus(folder, with_train(config, val_fraction=0.0))
    assert whole.validation == () and len(whole.training) == n_takes
    corpus = read_corpus(folder, config)
    assert len(corpus.training) == len(corpus.validation) == n_takes
    assert not frames_of(corpus.training) & frames_of(corpus.validation)
    for kept, held_out in zip(corpus.training, corpus.validation):
        assert (kept.first_frame, kept.n_frames) == (0, 180)
        assert (held_out.path, held_out.first_frame, held_out.n_frames) == (kept.path, 180, 20)


def test_only_new_and_changed_files_are_opened_again(write_takes, config, monkeypatch):
    folder = write_takes([f"{i:064x}" for i in range(8)])
    first = read_corpus(folder, config)
    opened = []
    monkeypatch.setattr(corpus, "load_recording", lambda path, *_: opened.append(path.name) or load_recording(path))
    assert read_corpus(folder, config) == first and opened == []
    save_recording(folder / "take_03.pt", load_recording(folder / "take_02.pt"))
    (folder / "take_05.pt").unlink()
    later = read_corpus(folder, config)
    assert opened == ["take_03.pt"] and len(later.training) == 6 and len(later.validation) == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format_version": 1}', '{"files": {"a": 1}}'])
def test_an_unusable_index_is_replaced(write_takes, config, content):
    folder = write_takes(["a", "b"])
    first = read_corpus(folder, config)
    whole = (folder / ".index.json").read_text()
    (folder / ".index.json").write_text(content)
    assert read_corpus(folder, config) == first
    assert (folder / ".index.json").read_text() == whole


def test_the_split_is_kept_when_recordings_are_added(write_takes, config):
    digests = [f"{i:02x}" * 32 for i in range(0, 200, 20)]
    before = read_corpus(write_takes(digests), config)
    folder = write_takes(digests + [f"{i:02x}" * 32 for i in range(1, 200, 20)])
    after = read_corpus(folder, config, before.boundary)
    assert sounds_of(before.validation) <= sounds_of(after.validation)
    assert sounds_of(before.training) <= sounds_of(after.training)
    assert after.boundary == before.boundary == "00" * 32
    assert len(read_corpus(folder, config).validation) == 2


@pytest.mark.parametrize("val_fraction", [0.1, 0.0])
def test_few_takes_stay_divided_when_recordings_are_added(write_takes, config, val_fraction):
    settings = with_train(config, val_fraction=val_fraction)
    digests = [f"{i:064x}" for i in range(40)]
    before = read_corpus(write_takes(digests[:4]), settings)
    after = read_corpus(write_takes(digests), settings, before.boundary)
    assert frames_of(before.training) <= frames_of(after.training)
    assert not frames_of(before.training) & frames_of(after.validation)
    assert len(after.validation) == (40 if val_fraction else 0) and after.boundary == before.boundary == RECORDING_ENDS


def test_a_boundary_of_other_recordings_is_ignored(write_takes, config):
    folder = write_takes([f"{i:02x}" * 32 for i in range(10)])
    for boundary in ("ff" * 32, "09" * 32):  # beyond the last take, and the last: nothing would be left to train on
        assert read_corpus(folder, config, boundary) == read_corpus(folder, config)
    assert len(read_corpus(folder, config, "08" * 32).training) == 1


def test_digest_of_held_out_spans_depends_on_names_and_frames(tmp_path):
    def identity(*spans, folder=tmp_path):
        held_out = tuple(Span(folder / name, first, n_frames) for name, first, n_frames in spans)
        return corpus.Corpus(folder, "trumpet", (), held_out).validation_digest()

    one, two = ("a.pt", 0, 10), ("b.pt", 0, 10)
    assert identity(one, two) == identity(two, one) == identity(one, two, folder=tmp_path / "moved")
    others = [(one,), (two,), (one, ("b.pt", 0, 11)), (one, ("b.pt", 1, 10)), (one, ("in/b.pt", 0, 10))]
    assert len({identity(*spans) for spans in [(one, two), *others]}) == 6


def test_statistics_are_the_quantiles_of_voiced_frames(tmp_path, config, counting_recording):
    recording = counting_recording(400)
    recording.periodicity[0, 300:] = 0.2  # unvoiced
    recording.loudness[0, 200:250] = -80  # at the floor
    save_recording(tmp_path / "take.pt", recording)
    statistics = measure_statistics([Span(tmp_path / "take.pt", 100, 300)], config)
    voiced = np.r_[100:200, 250:300]
    steps = np.linspace(0, 1, 101)
    # float32 curves against float64: 7 digits.
    assert statistics["f0_quantiles"] == pytest.approx(np.quantile(100.0 + voiced, steps), rel=1e-6)
    assert statistics["loudness_quantiles"] == pytest.approx(np.quantile(-70 + voiced / 1000, steps), rel=1e-6)
    assert all(type(value) is float for values in statistics.values() for value in values)


def test_statistics_without_voiced_frames_are_refused(tmp_path, config, counting_recording):
    recording = counting_recording(20)
    recording.periodicity[:] = 0
    save_recording(tmp_path / "noise.pt", recording)
    with pytest.raises(ValueError, match="no frame of the training data has a pitch"):
        measure_statistics([Span(tmp_path / "noise.pt", 0, 20)], config)
