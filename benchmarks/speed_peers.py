"""What ``benchmark.py`` measures beside packages that do the same: CREPE by torchcrepe, the STFT loss by auraloss.

auraloss is no requirement: without it its row is left out, and a line says how to get it.
"""

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sound import pitch_decoder as pitch
from sound.audio_files import load_audio
def alone(work, device):
    return work()

from speed_parts import CPU, Part, Work, Workload
from training.optimization import build_loss

_HOP = 160
_VOICE = Path(__file__).parents[1] / "examples" / "hum.wav"


def import_torchcrepe() -> types.ModuleType:
    """Import torchcrepe without torchaudio: it only reads files, and may not load beside a CPU build of torch."""
    stand_in = types.ModuleType("torchaudio")
    sys.modules.setdefault("torchaudio", stand_in)
    import torchcrepe

    if sys.modules["torchaudio"] is stand_in:
        del sys.modules["torchaudio"]
    return torchcrepe


torchcrepe = import_torchcrepe()  # now, so that it counts among the imports


def build_network(model: str, device: torch.device = CPU) -> Callable[[Workload], dict[str, Work]]:
    """Return what builds CREPE's activations of ``crop_seconds`` of a voice, with the weights "tiny" or "full"."""

    def build(load: Workload) -> dict[str, Work]:
        audio = read_voice(load.crop_seconds)

        def theirs() -> Tensor:
            sound, size = torch.from_numpy(audio)[None], pitch._BATCH_GPU  # a minute at once would take 12 GB of "full"
            frames = torchcrepe.preprocess(sound, pitch.SAMPLE_RATE, _HOP, size, device)
            activations = [torchcrepe.infer(batch, model, device=device).cpu() for batch in frames]
            return torch.cat(activations)[:-1]  # one more than ours

        return {
            "ours": lambda: torch.from_numpy(pitch.crepe_activation(audio, _HOP, model, device)),
            "reference": torch.inference_mode()(theirs),
        }

    return build


def build_search(load: Workload) -> dict[str, Work]:
    """Viterbi search for the path through the activations of ``render_seconds`` of a voice."""
    activation = pitch.crepe_activation(read_voice(load.render_seconds), _HOP)
    batched = torch.from_numpy(activation.T[None].copy())
    sure = torch.from_numpy(activation.max(axis=1) > 0.6)  # elsewhere any path is as good
    return {
        "ours": lambda: sure * torch.from_numpy(pitch._best_path(activation)),
        "reference": lambda: sure * torchcrepe.decode.viterbi(batched)[0][0],
    }


def read_voice(seconds: float) -> np.ndarray:
    """Return whole frames of the hum, again and again if it is too short: [N] at 16 kHz."""
    return np.resize(load_audio(_VOICE, pitch.SAMPLE_RATE), round(seconds * pitch.SAMPLE_RATE) // _HOP * _HOP)


def build_auraloss(load: Workload) -> dict[str, Work]:
    """Forward and backward through the loss; silence around the sound, for beyond its ends auraloss mirrors it."""
    from auraloss.freq import MultiResolutionSTFTLoss

    config, settings = load.config, load.config.loss
    sizes = settings.fft_sizes, settings.hop_sizes, settings.win_lengths
    theirs = MultiResolutionSTFTLoss(*sizes, w_log_mag=settings.mag_loss_weight)
    n_samples = config.audio.seconds_to_frames(load.crop_seconds) * config.audio.hop_length
    sounds = 0.1 * torch.randn(2, load.batch_size, n_samples, generator=torch.Generator().manual_seed(0))
    prediction, target = torch.nn.functional.pad(sounds, 2 * [max(settings.fft_sizes) // 2])
    prediction.requires_grad_()

    def run(compare: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        prediction.grad = None
        total = compare(prediction, target)
        total.backward()
        return total.detach()

    ours = build_loss(config)
    return {
        "ours": lambda: alone(lambda: run(lambda *pair: ours(*pair).total), CPU),
        "reference": lambda: run(lambda *pair: theirs(*(sound[:, None] for sound in pair))),
    }


def find_missing(part: Part) -> str | None:
    """Return the package that a part is measured beside, if it is not installed."""
    return part.reference if part is _AURALOSS and not importlib.util.find_spec(part.reference) else None


_AURALOSS = Part("auraloss", "four-resolution loss, forward + backward", "auraloss", build_auraloss)
PARTS = (
    _AURALOSS,
    Part("crepe_tiny", "CREPE tiny", "torchcrepe", build_network("tiny"), goal=2.5, imports_goal=100),
    Part("crepe_full", "CREPE full", "torchcrepe", build_network("full"), goal=4, imports_goal=500),
    Part("viterbi", "Viterbi search", "torchcrepe", build_search, goal=10),
)
