"""Processed files survive a round trip and nothing else gets in; crops are aligned and repeatable."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from conftest import damaged_pickles, zipped
from data import find_recordings, load_recording, save_recording
from recordings.corpus import read_corpus
from recordings.crops import (
    CropDataset,
    NeuralGuitarDataset,
    ProcessRanks,
    Span,
    Vox2TrumpetDataset,
    build_dataset,
    load_batches,
)

HOP = 160
FRAME_CURVES = ("f0", "loudness", "periodicity")


def with_train(config, **changes):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def as_dict(recording):
    content = {field.name: getattr(recording, field.name) for field in dataclasses.fields(recording)}
    return {"format_version": 1, **content}


@pytest.fixture
def spoilt(tmp_path, counting_recording):
    """Return a function that writes a processed file in which some entries are replaced, and returns its path."""

    def write(**changes):
        path = tmp_path / "spoilt.pt"
        content = {**as_dict(counting_recording(10)), **changes}
        torch.save({key: value for key, value in content.items() if value is not ...}, path)
        return path

    return write


# --- files --------------------------------------------------------------------------------------


def test_round_trip(tmp_path, config, counting_recording):
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
def test_hostile_pickle_does_not_run(tmp_path, bomb, spoilt, legacy):
    trap, target = bomb
    path = spoilt(source=trap)
    if legacy:
        path.write_bytes(pickle.dumps({"source": trap}, protocol=2))
    with pytest.raises(ValueError, match=path.name):
        load_recording(path)
    assert not target.exists()
    torch.load(spoilt(source=trap), weights_only=False)
    assert target.exists()  # the trap is live: it was the reader that refused


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
def test_what_is_no_processed_file_is_refused(processed_file, content):
    """Bytes, an object that torch saved, or the first share of a file."""
    whole = processed_file.read_bytes()
    if isinstance(content, bytes | float):
        processed_file.write_bytes(whole[: int(content * len(whole))] if isinstance(content, float) else content)
    else:
        torch.save(content, processed_file)
    with pytest.raises(ValueError, match=processed_file.name):
        load_recording(processed_file)


FRAMES = torch.ones(1, 10, 1)


TIME = {"hop_length": 160, "sample_rate": 16000}


@pytest.mark.parametrize(
    "extractor",
    [
        None,
        {"audio": {}},
        *({"audio": TIME | {name: value}} for name in TIME for value in (0, -1, 10**9, True, 160.0)),
        {"audio": TIME, "features": {"f0_min": torch.ones(2)}},
        {"audio": TIME, "features": []},
        {"audio": TIME, "version": torch.ones(2)},
    ],
    ids=str,
)
def test_settings_that_no_recording_has_are_refused(spoilt, extractor):
    with pytest.raises(ValueError, match=r"spoilt\.pt has no valid"):
        load_recording(spoilt(extractor=extractor))


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": 2},
        {"format_version": torch.ones(2)},
        {"f0": FRAMES.clone().requires_grad_()},
        {"audio": torch._neg_view(torch.ones(1, 1600))},
        {"periodicity": ...},
        {"extra": 1},
        {"f0": None},
        {"audio": [1.0]},
        {"f0": FRAMES.double()},
        {"f0": FRAMES[:, 1:]},
        {"f0": FRAMES[0, :, 0]},
        {"loudness": FRAMES[0].T},
        {"f0": FRAMES.view(2, 5, 1)},
        {"audio": torch.ones(1, 1599)},
        {"audio": torch.ones(1600)},
        {**dict.fromkeys(FRAME_CURVES, torch.zeros(1, 0, 1)), "audio": torch.zeros(1, 0)},
        {"f0": FRAMES[:, :1].expand(1, 10, 1)},
        {"f0": float("nan") * FRAMES},
        {"f0": -FRAMES},
        {"loudness": 1e30 * FRAMES},
        {"periodicity": 2 * FRAMES},
        {"audio": torch.empty(1, 1600, device="meta")},
        {"audio": torch.zeros(1, 1600).to_sparse()},
        {"bandwidth": float("nan")},
        {"source": None},
        {"source": {"sha256": 5}},
        {"instrument": ["trumpet"]},
        {"instrument": "../trumpet"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_what_a_recording_cannot_be_is_refused(spoilt, config, changes):
    path = spoilt(**changes)
    with pytest.raises(ValueError, match=r"spoilt\.pt"):
        read_corpus(path.parent, config)


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("features", {"crepe_model": "full"}),
        ("features", {"loudness_window": 512}),
        ("audio", {"hop_length": 80}),
    ],
)
def test_stale_file_is_refused(processed_file, config, section, changes):
    newer = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **changes)})
    with pytest.raises(ValueError, match=processed_file.name):
        load_recording(processed_file, newer)
    assert load_recording(processed_file).n_frames > 0  # without a configuration any will do


def test_a_file_of_an_earlier_extraction_is_refused(processed_file, config):
    content = torch.load(processed_file, weights_only=True)
    for version in ({}, {"version": content["extractor"]["version"] - 1}):
        content["extractor"] = {"audio": content["extractor"]["audio"], "features": content["extractor"]["features"]}
        torch.save(content | {"extractor": content["extractor"] | version}, processed_file)
        with pytest.raises(ValueError, match=processed_file.name):
            load_recording(processed_file, config)


def test_find_recordings(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        find_recordings(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        load_recording(tmp_path / "nowhere.pt")
    (tmp_path / "inside").mkdir()
    (tmp_path / ".incoming").mkdir()
    for name in ("b.pt", "inside/a.pt", "c.pt.part", "d.wav", "._b.pt", ".incoming/unchecked.pt"):
        (tmp_path / name).touch()
    assert find_recordings(tmp_path) == [tmp_path / "b.pt", tmp_path / "inside" / "a.pt"]


# --- crops --------------------------------------------------------------------------------------


@pytest.fixture
def spans(write_takes):
    folder = write_takes(["a", "b"], n_frames=560)
    return [Span(folder / "take_00.pt", 0, 560), Span(folder / "take_01.pt", 100, 350)]


def crops_of(dataset):
    return [dataset[i] for i in range(len(dataset))]


def first_frame(crop):
    return int(crop["f0"][0, 0]) - 100


def assert_aligned(crop, n_frames):
    """A counting recording's curves and samples all hold the number of their frame."""
    frames = first_frame(crop) + torch.arange(n_frames, dtype=torch.float32)
    assert torch.equal(crop["f0"][:, 0], 100 + frames)
    assert torch.equal(crop["loudness"][:, 0], -70 + frames / 1000)
    assert torch.equal(crop["audio"], frames.repeat_interleave(HOP))


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_curves_and_sound_of_a_crop_belong_together(spans, config, seed):
    for crop, path in zip(crops_of(CropDataset(spans, config, seed)), [0] * 5 + [1] * 3):
        assert (crop["f0"].shape, crop["loudness"].shape, crop["audio"].shape) == ((100, 1), (100, 1), (16000,))
        assert_aligned(crop, 100)
        assert spans[path].first_frame <= first_frame(crop) <= spans[path].first_frame + spans[path].n_frames - 100


def test_as_many_crops_as_the_recording_has_seconds(spans, config):
    assert len(CropDataset(spans, config, seed=0)) == 5 + 3
    assert len(CropDataset(spans, with_train(config, crop_seconds=2.0), seed=0)) == 2 + 1
    assert len(CropDataset(spans, with_train(config, crops_per_recording=1), seed=0)) == 2
    assert len(CropDataset(spans, with_train(config, crops_per_recording=1))) == 5 + 3  # validation hears everything
    assert len(CropDataset([], config, seed=0)) == 0


def test_random_crops_are_a_function_of_seed_epoch_and_index(spans, config):
    def starts(seed, epoch, order=range(8)):
        dataset = CropDataset(spans, config, seed)
        dataset.set_epoch(epoch)
        return {i: first_frame(dataset[i]) for i in order}

    assert starts(0, 0) == starts(0, 0, reversed(range(8)))  # what was read before does not matter
    assert starts(0, 0) != starts(0, 1)
    assert starts(0, 0) != starts(1, 0)
    assert len(set(starts(0, 0).values())) > 5  # and each index has its own


def test_random_crops_reach_the_last_frame(write_takes, config):
    dataset = CropDataset([Span(write_takes(["a"], n_frames=101) / "take_00.pt", 0, 101)], config, seed=0)
    starts = []
    for epoch in range(40):
        dataset.set_epoch(epoch)
        starts.append(first_frame(dataset[0]))
    assert set(starts) == {0, 1}  # 40 draws miss one of two places with probability 2e-12


def test_order_is_a_permutation_for_each_epoch(spans, config):
    dataset = CropDataset(spans, config, seed=3)
    first = dataset.order().tolist()
    assert first == dataset.order().tolist() and sorted(first) == list(range(8))
    dataset.set_epoch(1)
    assert dataset.order().tolist() != first and sorted(dataset.order()) == list(range(8))


def test_validation_crops_lie_one_after_another(spans, config):
    dataset = CropDataset(spans, config)
    assert [first_frame(crop) for crop in crops_of(dataset)] == [0, 100, 200, 300, 400, 100, 200, 300]
    dataset.set_epoch(5)
    assert first_frame(dataset[1]) == 100


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


@pytest.mark.parametrize("seed", [None, 0])
def test_padding_does_not_reach_into_the_other_side_of_the_split(write_takes, config, seed):
    folder = write_takes(["a"], n_frames=300)
    crop = CropDataset([Span(folder / "take_00.pt", 0, 40)], config, seed)[0]
    assert crop["audio"].max() < 40


@pytest.mark.parametrize("index", [8, -9])
@pytest.mark.parametrize("seed", [None, 0])
def test_index_beyond_the_end(spans, config, seed, index):
    with pytest.raises(IndexError):
        CropDataset(spans, config, seed)[index]


def test_crop_is_a_copy(spans, config):
    dataset = CropDataset(spans, config)
    dataset[0]["audio"].zero_()
    dataset[0]["f0"].zero_()
    assert_aligned(dataset[0], 100)


def test_loads_in_batches(spans, config):
    batches = list(DataLoader(CropDataset(spans, config, seed=0), batch_size=3))
    assert [len(batch["audio"]) for batch in batches] == [3, 3, 2]
    assert batches[0]["f0"].shape == (3, 100, 1)


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


@pytest.mark.parametrize(
    ("instrument", "kind"),
    [("guitar", NeuralGuitarDataset), ("trumpet", Vox2TrumpetDataset), ("tuba", Vox2TrumpetDataset)],
)
def test_instrument_chooses_the_name(spans, config, instrument, kind):
    dataset = build_dataset(spans, instrument, config, seed=4)
    assert type(dataset) is kind and dataset.seed == 4


def test_dataset_goes_to_another_process(spans, config):
    dataset = CropDataset(spans, config, seed=4)
    dataset.set_epoch(2)
    before = dataset[3]  # a file is open
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3]["audio"], before["audio"])


def test_crop_knows_its_file(spans, config):
    dataset = CropDataset(spans, config, seed=4)
    assert [dataset.path_of(index).name for index in range(8)] == ["take_00.pt"] * 5 + ["take_01.pt"] * 3


@pytest.mark.parametrize("kind", [NeuralGuitarDataset, Vox2TrumpetDataset])
def test_a_dataset_takes_a_folder(kind, tmp_path, counting_recording):
    with pytest.raises(ValueError, match=tmp_path.name):
        kind(tmp_path)
    for number, n_frames in enumerate((250, 130)):
        save_recording(tmp_path / f"{number}.pt", counting_recording(n_frames))
    crops = kind(str(tmp_path))
    assert len(crops) == 3 and crops[2]["f0"].shape == (100, 1)
    assert [crops.path_of(index).name for index in range(3)] == ["0.pt", "0.pt", "1.pt"]
