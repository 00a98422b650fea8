"""playing/causal_transfer.py: the same sound for any block size, without look-ahead."""

import gc
from collections import deque
from itertools import pairwise
from types import FunctionType, ModuleType

import numpy as np
import pytest
import soxr
import torch

from checkpoint import load_model
from conftest import melody
from features import extract_features
from playing.causal_transfer import StreamingTransfer
from playing.live_graph import LIMITER_HOLD_SECONDS, LIMITER_RELEASE_SECONDS, Limiter, LiveGraph, shown_values
from playing.offline_transfer import describe_transfer, transfer, transfer_causal
from voice.instrument_fit import TransferOptions

RATE = 16000


@pytest.fixture
def model(write_checkpoint):
    """A small trumpet whose training data lie between 200 and 800 Hz, and -45 and -15 dB."""
    return load_model(write_checkpoint())


def stream(model, audio: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Return the output for ``audio`` in blocks, whose sizes repeat."""
    streaming, parts, start = StreamingTransfer(model), [], 0
    while start < len(audio):
        size = sizes[len(parts) % len(sizes)]
        block = audio[start : start + size]
        parts.append(streaming.process(block))
        assert len(parts[-1]) == len(block)
        start += size
    return np.concatenate(parts)


def test_sound_does_not_depend_on_the_block_size(model) -> None:
    song = melody()[: int(1.5 * RATE)]
    latency = StreamingTransfer(model).latency
    assert latency == 512 + 160 - 1 + 16  # half of CREPE's window, a block, the noise filter
    given = np.concatenate([song, np.zeros(latency, np.float32)])
    expected = stream(model, given, [160])
    assert np.abs(expected).max() > 0.01
    for sizes in ([len(given)], [1000], [1, 37, 0, 500, 161]):
        assert np.array_equal(stream(model, given, sizes), expected)
    result = transfer_causal(iter(np.split(song, [7000])), model)
    assert np.abs(result.audio[: len(song)] - expected[latency:]).max() < 1e-6
    assert len(result.audio) == len(song) and len(result.curves.f0) == len(song) // 160


def weigh(thing, seen: set[int]) -> int:
    """Return the bytes of all samples and tensors, and the entries of all lists, that can be reached from an object."""
    if id(thing) in seen or isinstance(thing, (type, ModuleType, FunctionType, torch.nn.Module)):
        return 0
    seen.add(id(thing))
    weight = sum(weigh(each, seen) for each in gc.get_referents(thing))
    if isinstance(thing, torch.Tensor):
        return weight + thing.untyped_storage().nbytes()
    if isinstance(thing, np.ndarray):
        return weight + (thing if thing.base is None else thing.base).nbytes
    return weight + (len(thing) if isinstance(thing, (list, deque, dict)) else 0)


def test_memory_does_not_grow(model) -> None:
    streaming, song, weights = StreamingTransfer(model), melody(), []
    for start in range(0, 3 * RATE, 160):
        streaming.process(song[start % RATE :][:160])
        if start % RATE == RATE - 160:
            weights.append(weigh(streaming, set()))
    assert len(set(weights)) == 1 and 10_000 < weights[0] < 1_000_000


def test_the_tune_is_played_in_time_and_rests_are_silent(model) -> None:
    result = transfer_causal([melody((220.0, 261.6), note_seconds=0.5, rest_seconds=0.4)], model)
    assert result.report["semitones"] == 12  # from about 200 Hz to the middle of the data, 400 Hz
    for first, f0 in ((0, 220.0), (90, 261.6)):
        played = result.curves.f0[first + 10 : first + 45]
        assert np.abs(1200 * np.log2(played / (2 * f0))).max() < 20
        assert result.curves.gate[first + 8 : first + 48].min() == 1
        assert result.curves.gate[first + 70 : first + 88].max() == 0
        assert np.abs(result.audio.reshape(-1, 160)[first + 70 : first + 86]).max() < 1e-4
    assert 0.2 < result.report["share_gated"] < 0.6


@torch.inference_mode()
def test_measurements_equal_the_features(model) -> None:
    song = melody()
    expected, graph = extract_features(song, model.settings), LiveGraph(model)
    given = np.concatenate([np.zeros(128), song, np.zeros(512)]).astype(np.float32)  # frame 0 lies on sample 0
    state, frames = graph.initial_state(), []
    for voice in torch.from_numpy(given).split(160):
        _, shown, state = graph(voice, torch.zeros(160), graph.controls(), state)
        frames.append(shown_values(shown))
    f0, loudness, periodicity = (np.array([frame[name] for frame in frames[3:-1]]) for name in expected._fields)
    n_frames = len(expected.f0)
    assert len(f0) == n_frames
    inner = slice(n_frames - 4)  # at the end the weighting filter rings on, into the zeros
    assert np.abs(loudness[inner] - expected.loudness.numpy()[inner]).max() < 1e-4
    sure = expected.periodicity.numpy() > 0.8
    assert np.abs(1200 * np.log2(f0 / expected.f0.numpy()))[sure].max() < 1
    assert np.abs(periodicity - expected.periodicity.numpy())[sure].max() < 1e-4


class MeasuredGraph(LiveGraph):
    """A live graph with given measurements."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.state = self.initial_state()

    def _measure(self, voice, state):
        return state.voice, state.power, state.weighting, self.measured

    @torch.inference_mode()
    def frame(self, *measured: float) -> dict[str, float]:
        """Return ``SHOWN`` of a frame with a given f0, loudness and periodicity."""
        self.measured = tuple(torch.tensor([value]) for value in measured)
        _, shown, self.state = self(torch.zeros(160), torch.zeros(160), self.controls(), self.state)
        return shown_values(shown)


def test_gate_has_hysteresis_and_a_release(model) -> None:
    settings, graph = model.settings.transfer, MeasuredGraph(model)
    loud, between, low = settings.live_gate + 1, settings.live_gate - 2, settings.live_gate - 6

    def play(loudness: float, periodicity: float = 0.9, n_frames: int = 5) -> dict[str, float]:
        return [graph.frame(220.0, loudness, periodicity) for _ in range(n_frames)][-1]

    assert not play(between)["voiced"] and play(between)["gate"] == 0
    assert play(loud)["voiced"] and play(loud)["gate"] == pytest.approx(1)
    assert play(between)["voiced"] and play(loud, 0.3)["voiced"] and not play(loud, 0.2)["voiced"]
    assert play(loud)["voiced"] and not play(low)["voiced"]
    assert graph.state.played.phase > 0
    falling = [play(low, n_frames=1) for _ in range(12)]
    for name in ("played_loudness", "gate"):
        assert all(one[name] >= other[name] for one, other in pairwise(falling))
    assert falling[-1]["gate"] == pytest.approx(0, abs=1e-9)
    assert graph.state.played.phase == 0  # so that rounding errors do not accumulate over minutes
    assert falling[-1]["played_f0"] == falling[0]["played_f0"]


def test_single_octave_error_is_removed(model) -> None:
    graph = MeasuredGraph(model, TransferOptions(semitones=0.0, transpose=12.0))
    pitches = [graph.frame(f0, -20.0, 0.9)["played_f0"] for f0 in (220.0, 220.0, 440.0, 220.0, 220.0)]
    assert pitches == [440.0] * 5


CEILING = 10 ** (-1 / 20)


def limit(config, sound: np.ndarray) -> np.ndarray:
    """Return the gains of a sound [N]."""
    limiter, parts = Limiter(config), []
    limits, gain = torch.ones(limiter.n_hold), torch.ones(1)
    for hop in torch.from_numpy(sound).float().split(160):
        gains, limits, gain = limiter(hop, limits, gain)
        parts.append(gains)
    return torch.cat(parts).double().numpy()


@pytest.mark.parametrize("f0", [32.7, 110.0, 441.0, 1975.5])  # CREPE's range and the model's
def test_limiter_does_not_distort_a_tone(config, f0: float) -> None:
    time = np.arange(RATE) / RATE
    sine = 10 ** (20 / 20) * CEILING * np.sin(2 * np.pi * f0 * time)
    gains = limit(config, sine)
    assert np.abs(gains * sine).max() <= CEILING
    played, window = (gains * sine)[1600:], np.blackman(RATE - 1600)  # after the attack
    power = np.abs(np.fft.rfft(played * window)) ** 2
    tone = np.abs(np.fft.rfftfreq(len(played), 1 / RATE) - f0) < 5
    assert 10 * np.log10(power[~tone].sum() / power[tone].sum()) < -50  # clipped it would be -7
    assert 20 * np.log10(gains.min()) == pytest.approx(-20, abs=0.1)


def test_limiter_gain_is_continuous_and_recovers(config) -> None:
    loud = np.zeros(RATE)
    loud[4010:4800] = 4 * CEILING * np.sin(2 * np.pi * 200 * np.arange(790) / RATE)
    gains = limit(config, loud)
    assert gains[:4000].min() == 1 and gains.min() == pytest.approx(0.25, rel=1e-3)
    assert np.abs(gains * loud).max() <= CEILING
    lowest, end = int(gains.argmin()), 4800 + round(LIMITER_HOLD_SECONDS * RATE)
    assert np.diff(gains[4000:lowest]).std() < 1e-7 and np.ptp(gains[lowest:end]) < 1e-6
    back = np.diff(gains[end:])
    assert back.min() >= -1e-7 and back.max() < 0.75 / (LIMITER_RELEASE_SECONDS * RATE) * 1.001
    later = end + round(LIMITER_RELEASE_SECONDS * RATE)
    assert gains[later - 1] == pytest.approx(1 - 0.75 / np.e, rel=1e-5)


def test_limiter_leaves_soft_sound_unchanged(config) -> None:
    assert np.all(limit(config, 0.999 * CEILING * np.sin(np.arange(1600))) == 1)


def test_loud_output_is_limited_not_clipped(model) -> None:
    song = melody()[:RATE]
    assert transfer_causal([song], model).report["peak_gain"] == 0
    model.log_gain.data += 6
    loud = stream(model, song, [1600])
    assert CEILING - 2e-6 < np.abs(loud).max() <= CEILING
    assert (np.abs(loud) > 0.9999 * CEILING).sum() < 30  # clipped it would be thousands
    for sizes in ([len(song)], [1, 37, 0, 500, 161]):
        assert np.array_equal(stream(model, song, sizes), loud)
    result = transfer_causal(iter(np.split(song, [7000])), model)
    latency = StreamingTransfer(model).latency
    assert np.array_equal(result.audio[: len(song) - latency], loud[latency:])
    assert result.report["peak_gain"] < -6
    assert f"turned down by up to {-result.report['peak_gain']:.1f} dB" in describe_transfer(result.report)
    faster = transfer_causal([song], model, TransferOptions(output_rate=44100))
    assert np.abs(faster.audio).max() <= CEILING + 1e-6 and faster.report["peak_gain"] <= result.report["peak_gain"]


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_the_finished_stream_is_resampled(model, rate: int) -> None:
    song = melody()[: RATE // 2 + 77]
    plain, result = (transfer_causal([song], model, TransferOptions(output_rate=each)) for each in (None, rate))
    assert result.sample_rate == rate and len(result.noise) == len(result.audio)
    assert len(result.audio) == len(transfer(song, RATE, model, TransferOptions(output_rate=rate)).audio)
    expected = soxr.resample(plain.audio, RATE, rate)
    assert np.abs(expected).max() > 0.01 and np.abs(result.audio[: len(expected)] - expected).max() < 1e-5
    assert abs(result.report["seconds"] - plain.report["seconds"]) < 1e-3


@pytest.mark.parametrize(
    ("voice", "message"),
    [
        (np.zeros(0, np.float32), "is silent"),
        (np.zeros(RATE // 4, np.float32), "is silent"),
        (melody()[:160], "no melody"),
        (0.001 * melody()[: RATE // 4], "no melody .* the gate of -50 dB"),
    ],
)
def test_missing_melody_is_an_error(model, voice: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transfer_causal([voice], model)


@pytest.mark.parametrize("options", [{"fold": True}, {"autotune": 0.5}, {"key": "C major"}, {"smoothing": 0.1}])
def test_options_with_look_ahead_are_refused(model, options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        StreamingTransfer(model, TransferOptions(**options))


def test_a_stream_of_another_rate_is_refused(model) -> None:
    with pytest.raises(ValueError, match="a stream comes at the model's 16000 Hz"):
        StreamingTransfer(model, TransferOptions(output_rate=48000))
    assert StreamingTransfer(model, TransferOptions(output_rate=RATE)).rate == RATE
