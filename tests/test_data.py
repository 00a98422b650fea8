"""data.py and recordings/crops.py: processed files, refused files, aligned and repeatable crops."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from conftest import damaged_pickles, zipped
from data import find_recordings, load_recording, save_recording
from recordings.corpus import read_corpus
from recordings.crops import CropDataset, NeuralGuitarDataset, ProcessRanks, Span, Vox2TrumpetDataset, load_batches

HOP = 160
FRAME_CURVES = ("f0", "loudness", "periodicity")


def with_train(config, **changes):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def as_dict(recording):
    content = {field.name: getattr(recording, field.name) for field in dataclasses.fields(recording)}
    return {"format_version": 1, **content}


@pytest.fixture
def write_changed(tmp_path, counting_recording):
    """Return a function that writes a processed file with changed entries (...: removed) and returns its path."""

    def write(**changes):
        path = tmp_path / "changed.pt"
        content = {**as_dict(counting_recording(10)), **changes}
        torch.save({key: value for key, value in content.items() if value is not ...}, path)
        return path

    return write


def test_a_recording_survives_saving_and_loading(tmp_path, config, counting_recording):
    recording = counting_recording(30)
    save_recording(tmp_path / "take.pt", recording)
    loaded = load_recording(tmp_path / "take.pt", config)
    assert loaded.n_frames == 30
    for name in (*FRAME_CURVES, "audio"):
        assert torch.equal(getattr(loaded, name), getattr(recording, name))
    for name in ("instrument", "source", "extractor"):
        assert getattr(loaded, name) == getattr(recording, name)
    assert [path.name for path in tmp_path.iterdir()] == ["take.pt"]  # nothing partial stays


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_not_executed(tmp_path, bomb, write_changed, legacy):
    trap, target = bomb
    path = write_changed(source=trap)
    if legacy:
        path.write_bytes(pickle.dumps({"source": trap}, protocol=2))
    with pytest.raises(ValueError, match=path.name):
        load_recording(path)
    assert not target.exists()
    pickle.loads(pickle.dumps(trap))
    assert target.exists()  # pickle does execute it


@pytest.mark.parametrize(
    "content",
    [
        *damaged_pickles(),
        *map(zipped, damaged_pickles()),
        [1, 2],
        torch.zeros(3),
        {"f0": torch.zeros(1, 3, 1)},
        0.5,
        0.99,
    ],
    ids=lambda content: repr(content)[:12],
)
def test_other_and_damaged_files_are_refused(processed_file, content):
    """Bytes, an object that torch saved, or the first share of a file."""
    whole = processed_file.read_bytes()
    if isinstance(content, bytes | float):
        processed_file.write_bytes(whole[: int(content * len(whole))] if isinstance(content, float) else content)
    else:
        torch.save(content, processed_file)
    with pytest.raises(ValueError, match=processed_file.name):
        load_recording(processed_file)


FRAMES = torch.ones(1, 10, 1)
EMPTY = {**dict.fromkeys(FRAME_CURVES, FRAMES[:, :0]), "audio": torch.zeros(1, 0)}
RATES = {"hop_length": 160, "sample_rate": 16000}
INVALID = (
    ("format_version", [2, torch.ones(2)]),
    ("f0", [None, FRAMES.double(), FRAMES[:, 1:], FRAMES[0, :, 0], FRAMES.view(2, 5, 1)]),
    ("f0", [float("nan") * FRAMES, -FRAMES, FRAMES[:, :1].expand(1, 10, 1), FRAMES.clone().requires_grad_()]),
    ("loudness", [FRAMES[0].T, 1e30 * FRAMES]),
    ("periodicity", [..., 2 * FRAMES]),
    ("audio", [[1.0], torch.ones(1, 1599), torch.ones(1600), torch._neg_view(torch.ones(1, 1600))]),
    ("audio", [torch.empty(1, 1600, device="meta"), torch.zeros(1, 1600).to_sparse()]),
    ("extractor", [None, {"audio": {}}, {"audio": RATES, "features": [], "version": 2}]),
    ("extractor", [{"audio": RATES, "features": {"f0_min": torch.ones(2)}}]),
    ("extractor", [{"audio": RATES | {name: value}, "features": {}} for name in RATES for value in (0, 10**9)]),
    ("bandwidth", [float("nan")]),
    ("source", [None, {"sha256": 5}]),
    ("instrument", [["trumpet"], "../trumpet"]),
    ("extra", [1]),
)


@pytest.mark.parametrize(
    "changes", [EMPTY, *({name: value} for name, values in INVALID for value in values)], ids="-".join
)
def test_invalid_recordings_are_refused(write_changed, config, changes):
    path = write_changed(**changes)
    with pytest.raises(ValueError, match=r"changed\.pt"):
        read_corpus(path.parent, config)


@pytest.mark.parametrize(
    ("section", "changes"),
    [("features", {"crepe_model": "full"}), ("features", {"loudness_window": 512}), ("audio", {"hop_length": 80})],
)
def test_files_made_with_other_settings_are_refused(processed_file, config, section, changes):
    newer = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **changes)})
    with pytest.raises(ValueError, match=processed_file.name):
        load_recording(processed_file, newer)
    assert load_recording(processed_file).n_frames > 0  # without a configuration any will do


def test_files_of_an_earlier_extractor_are_refused(processed_file, config):
    content = torch.load(processed_file, weights_only=True)
    for version in ({}, {"version": content["extractor"]["version"] - 1}):
        content["extractor"] = {"audio": content["extractor"]["audio"], "features": content["extractor"]["features"]}
        torch.save(content | {"extractor": content["extractor"] | version}, processed_file)
        with pytest.raises(ValueError, match=processed_file.name):
            load_recording(processed_file, config)


def test_find_recordings_skips_hidden_and_other_files(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        find_recordings(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        load_recording(tmp_path / "nowhere.pt")
    (tmp_path / "inside").mkdir()
    (tmp_path / ".incoming").mkdir()
    for name in ("b.pt", "inside/a.pt", "c.pt.part", "d.wav", "._b.pt", ".incoming/unchecked.pt"):
        (tmp_path / name).touch()
    assert find_recordings(tmp_path) == [tmp_path / "b.pt", tmp_path / "inside" / "a.pt"]


@pytest.fixture
def spans(write_takes):
    folder = write_takes(["a", "b"], n_frames=560)
    return [Span(folder / "take_00.pt", 0, 560), Span(folder / "take_01.pt", 100, 350)]


def first_frame(crop):
    return int(crop["f0"][0, 0]) - 100


def assert_aligned(crop, n_frames):
    """A counting recording's curves and samples all hold the number of their frame."""
    frames = first_frame(crop) + torch.arange(n_frames, dtype=torch.float32)
    assert torch.equal(crop["f0"][:, 0], 100 + frames)
    assert torch.equal(crop["loudness"][:, 0], -70 + frames / 1000)
    assert torch.equal(crop["audio"], frames.repeat_interleave(HOP))


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_curves_and_audio_of_a_crop_are_aligned(spans, config, seed):
    dataset = CropDataset(spans, config, seed)
    crops = [dataset[index] for index in range(len(dataset))]
    assert [dataset.path_of(index).name for index in range(8)] == ["take_00.pt"] * 5 + ["take_01.pt"] * 3
    if seed is None:  # validation: one after the other
        assert [first_frame(crop) for crop in crops] == [0, 100, 200, 300, 400, 100, 200, 300]
    for crop, path in zip(crops, [0] * 5 + [1] * 3):
        assert (crop["f0"].shape, crop["loudness"].shape, crop["audio"].shape) == ((100, 1), (100, 1), (16000,))
        assert_aligned(crop, 100)
        assert spans[path].first_frame <= first_frame(crop) <= spans[path].first_frame + spans[path].n_frames - 100


def test_number_of_crops(spans, config):
    assert len(CropDataset(spans, config, seed=0)) == 5 + 3
    assert len(CropDataset(spans, with_train(config, crop_seconds=2.0), seed=0)) == 2 + 1
    assert len(CropDataset(spans, with_train(config, crops_per_recording=1), seed=0)) == 2
    assert len(CropDataset(spans, with_train(config, crops_per_recording=1))) == 5 + 3  # validation uses everything
    assert len(CropDataset([], config, seed=0)) == 0


def test_random_crops_depend_only_on_seed_epoch_and_index(spans, config):
    def crops(seed, epoch, order=range(8)):
        dataset = CropDataset(spans, config, seed)
        dataset.set_epoch(epoch)
        return {i: first_frame(dataset[i]) for i in order}, dataset.order().tolist()

    assert crops(0, 0) == crops(0, 0, reversed(range(8)))  # earlier reads do not matter
    starts, order = zip(*(crops(seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))))
    assert starts[0] not in starts[1:] and order[0] not in order[1:]
    assert len(set(starts[0].values())) > 5 and all(sorted(each) == list(range(8)) for each in order)


@pytest.mark.parametrize("seed", [None, 0])
def test_short_recordings_are_padded(write_takes, config, seed):
    folder = write_takes(["a"], n_frames=30)
    dataset = CropDataset([Span(folder / "take_00.pt", 0, 30)], config, seed)
    assert len(dataset) == 1
    crop = dataset[0]
    assert_aligned({"f0": crop["f0"][:30], "loudness": crop["loudness"][:30], "audio": crop["audio"][: 30 * HOP]}, 30)
    assert (crop["f0"][30:] == 129).all()  # the last pitch, so that it stays positive
    assert (crop["loudness"][30:] == config.features.loudness_floor).all()
    assert (crop["audio"][30 * HOP :] == 0).all()
    assert crop["audio"].shape == (16000,)
    whole = write_takes(["a"], n_frames=300) / "take_00.pt"
    assert CropDataset([Span(whole, 0, 40)], config, seed)[0]["audio"].max() < 40  # not beyond the span


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_share_the_rest_of_an_epoch(spans, config, rank):
    """From the fourth crop on, two at a time; of the last batch one is left, and the second rank repeats it."""
    crops, order = CropDataset(spans, config), np.array([7, 6, 0, 1, 2, 3, 4, 5])
    batches = list(load_batches(crops, order, 3, 2, ProcessRanks(rank, rank, 2), torch.device("cpu")))
    assert [list(positions) for positions, _, _ in batches] == [[3, 4], [5, 6], [7]]
    wanted = [[3, 5, 7], [4, 6, 7]][rank]
    assert [list(share) for _, share, _ in batches] == [[position] for position in wanted]
    for position, (_, _, batch) in zip(wanted, batches):
        assert all(torch.equal(batch[name][0], values) for name, values in crops[order[position]].items())


@pytest.mark.parametrize("kind", [NeuralGuitarDataset, Vox2TrumpetDataset])
def test_a_dataset_of_a_folder(kind, tmp_path, counting_recording):
    with pytest.raises(ValueError, match=tmp_path.name):
        kind(tmp_path)
    for number, n_frames in enumerate((250, 130)):
        save_recording(tmp_path / f"{number}.pt", counting_recording(n_frames))
    crops = kind(str(tmp_path))
    assert len(crops) == 3 and crops[2]["f0"].shape == (100, 1)
    assert [crops.path_of(index).name for index in range(3)] == ["0.pt", "0.pt", "1.pt"]
