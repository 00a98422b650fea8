"""playing/offline_transfer.py: playing in blocks equals playing at once."""

import dataclasses

import numpy as np
import pytest
import torch

from config import load_config
from model import Sound, build_model
from playing.offline_transfer import BlockPlayer, play_curves
from voice.curves import Curves


def build(preset: str, config, **changes):
    """Return a small untrained model of a preset, with larger weights, so that curves and noise affect the sound."""
    torch.manual_seed(0)
    wanted = load_config(preset=preset)
    small = dict.fromkeys(("embed_size", "projection_size"), 16) if preset == "solo" else {}
    size = 32 if preset == "transformer" else 48
    model = dataclasses.replace(wanted.model, hidden_size=size, n_harmonics=30, noise_bias=-2.0, **small, **changes)
    built = build_model(dataclasses.replace(wanted, model=model), "trumpet").eval()
    for parameter in built.decoder.parameters():
        parameter.data *= 2  # so that the state affects the sound
    if built.reverb:
        built.reverb.response.data = 0.02 * torch.randn(len(built.reverb.response))
    return built


def curves(seconds: float) -> Curves:
    """Return a glide with vibrato and a swell, and a gate that closes repeatedly."""
    frames = np.arange(round(100 * seconds))
    f0 = 300 * 2 ** (np.sin(frames / 300) + 0.03 * np.sin(frames / 3))
    loudness = -20 + 8 * np.sin(frames / 40)
    gate = np.clip(3 * np.sin(frames / 70) + 2.5, 0, 1)
    f0, loudness, gate = (values.astype(np.float32) for values in (f0, loudness, gate))
    return Curves(f0, loudness, np.ones_like(f0), gate == 1, gate)


@torch.inference_mode()
def whole(model, played: Curves, seed: int) -> Sound:
    """Return the model's output for all frames at once, as the reference."""
    f0, loudness, gate = (torch.from_numpy(v)[None, :, None] for v in (played.f0, played.loudness, played.gate))
    controls = model.controls(f0, loudness)
    controls = controls._replace(
        harmonic_amplitudes=controls.harmonic_amplitudes * gate, noise_magnitudes=controls.noise_magnitudes * gate
    )
    return model.synthesize(f0, controls, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("preset", ["tiny", "solo", "transformer"])
def test_playing_in_blocks_equals_playing_at_once(preset: str, config) -> None:
    model, tune = build(preset, config), curves(40.0)
    expected = whole(model, tune, seed=3)
    assert expected.harmonic.std() > 0.01 and expected.noise.std() > 0.001
    for block_frames in (700, 1000, 4000):
        blocks = [sound for sound, _ in play_curves(model, tune, seed=3, block_frames=block_frames)]
        for joined, wanted in zip((torch.cat(parts, dim=1) for parts in zip(*blocks)), expected):
            assert joined.shape == wanted.shape and (joined - wanted).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("preset", "options"),
    [("tiny", {}), ("transformer", {}), ("tiny", {"attack_frames": 4}), ("solo", {"reverb_seconds": 0.3})],
)
def test_blocks_of_any_sizes(preset: str, options: dict, config) -> None:
    """From 1 to 100 frames; the output is delayed by the latency, and no more frames than needed are kept."""
    model, tune = build(preset, config, **options), curves(3.0)
    expected, player, parts, start = whole(model, tune, seed=0), BlockPlayer(model, seed=0), [], 0
    for size in (1, 1, 1, 2, 3, 100, 1, 7, 64, 65, 55):
        here = slice(start, start + size)
        frames = (torch.from_numpy(v[here])[None, :, None] for v in (tune.f0, tune.loudness, tune.gate))
        start += size
        parts.append(player.play_block(*frames, is_last=start == 300)[0])
        n_played = sum(part.harmonic.shape[1] for part in parts) // 160
        assert n_played == (300 if start == 300 else max(0, start - player.latency))
        assert player._pending[0].shape[1] <= 2 * player.latency
    assert start == 300
    for joined, wanted in zip((torch.cat(part, dim=1) for part in zip(*parts)), expected):
        assert (joined - wanted).abs().max() < 1e-4


def test_noise_balance_and_seed_change_the_sound(config) -> None:
    model, tune = build("tiny", config), curves(1.0)
    plain, louder, other = (
        torch.cat([sound.noise for sound, _ in play_curves(model, tune, **flags)], dim=1)
        for flags in ({"seed": 1}, {"seed": 1, "noise_balance": 6.0}, {"seed": 2})
    )
    assert torch.allclose(louder, plain * 10 ** (6 / 20), atol=1e-6) and not torch.allclose(plain, other, atol=1e-3)


def test_the_phase_stays_exact_over_many_blocks(config) -> None:
    """After 400 blocks of 0.1 s, a steady tone has the phase of 64-bit arithmetic."""
    model = build("tiny", config)
    n_frames, f0 = 4000, 777.77
    ones = np.ones(n_frames, np.float32)
    tune = Curves(f0 * ones, -20 * ones, ones, ones > 0, ones)
    harmonic = torch.cat([sound.harmonic for sound, _ in play_curves(model, tune, block_frames=10)], dim=1)[0].numpy()
    tail = harmonic[-16000:].astype(float) * np.hanning(16000)
    phase = 2 * np.pi * float(np.float32(f0)) / 16000 * np.arange(1, n_frames * 160 + 1)[-16000:]
    assert abs(np.angle(1j * np.sum(tail * np.exp(-1j * phase)))) < 1e-4
