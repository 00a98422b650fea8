"""bfloat16 in the decoder: nearly the same gradients; synthesis, loss and GRU stay in float32."""

import pytest
import torch

from config import load_config
from model import GruDecoder, build_model
from training.trainer import build_loss, train_step

TIME = torch.linspace(0, 1, 25)[None, :, None].expand(2, -1, -1)
F0, LOUDNESS = 220 * 2**TIME, 30 * TIME - 50


def gradients(preset, **flags):
    """Return all gradients of one step in one row."""
    config = load_config(preset=preset)
    torch.manual_seed(0)
    model = build_model(config, "trumpet").eval()  # no dropout
    batch = {"f0": F0, "loudness": LOUDNESS, "audio": 0.1 * torch.randn(2, 4000)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train_step(model, build_loss(config), optimizer, batch, 1e9, torch.Generator().manual_seed(0), **flags)
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("preset", ["tiny", "solo", "transformer"])
def test_gradients_in_bfloat16_are_close_to_those_in_float32(preset):
    plain = gradients(preset)
    assert torch.equal(gradients(preset, precision=torch.float32), plain)
    coarse = gradients(preset, precision=torch.bfloat16)
    assert coarse.dtype == torch.float32 and not torch.equal(coarse, plain)
    assert torch.cosine_similarity(plain, coarse, dim=0) > 0.999  # eight bits a factor


def test_synthesis_and_the_gru_stay_in_float32():
    model = build_model(load_config(preset="solo"), "trumpet")
    exact = model.controls(F0, LOUDNESS)
    plain = model.synthesize(F0, exact, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        controls = model.controls(F0, LOUDNESS)
        sound = model.synthesize(F0, exact, torch.Generator().manual_seed(0))
    assert not torch.equal(controls.noise_magnitudes, exact.noise_magnitudes)  # bfloat16 was in use
    assert {controls.harmonic_amplitudes.dtype, controls.noise_magnitudes.dtype} == {torch.float32}
    assert torch.equal(sound.harmonic, plain.harmonic) and torch.equal(sound.noise, plain.noise)
    decoder, inputs = GruDecoder(load_config().model), torch.cat([F0, LOUDNESS], dim=-1)[:1]
    with torch.no_grad():
        exact = decoder(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(decoder(inputs), exact)
            assert torch.equal(decoder(inputs.bfloat16()), decoder(inputs.bfloat16().float()))
