"""Export of the live graph as a model file of the Neutone plug-in, which runs in a DAW. Experimental.

It needs ``neutone_sdk`` in a separate environment (docs/export.md). The graph is traced to TorchScript; the wrapper
holds its state and noise, decimates the voice, and maps the four knobs. The SDK adapts block sizes and sample rates.
"""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from neutone_sdk import ContinuousNeutoneParameter, WaveformToWaveformBase
from neutone_sdk.utils import save_neutone_model
from torch import Tensor, nn

from model import NeuralGuitar
from playing.causal_transfer import Decimator
from playing.live_graph import CONTROLS, ExportedLiveGraph, LiveGraph


class _Knob(NamedTuple):
    """Knob of the plug-in, from ``-reach`` to ``reach``, for an entry of ``CONTROLS``."""

    name: str
    reach: float
    description: str


_KNOBS = (
    _Knob("semitones", 24.0, "semitones up or down, whole ones; middle: the usual register"),
    _Knob("loudness", 20.0, "20 dB softer to 20 dB louder, which is also darker or brighter"),
    _Knob("gate", 20.0, "20 dB lower to 20 dB higher: higher leaves more silent"),
    _Knob("noise", 20.0, "20 dB less to 20 dB more breath"),
)
assert len(_KNOBS) == len(CONTROLS)


class NeutoneLive(WaveformToWaveformBase):
    """The live graph with the SDK's interface: 10 ms of mono in and out at the model's rate, with an internal state."""

    def __init__(self, traced: nn.Module, graph: LiveGraph, instrument: str) -> None:
        audio = graph.config.audio
        self.instrument, self.rate, self.hop = instrument, audio.sample_rate, audio.hop_length
        decimator = Decimator(audio.sample_rate // audio.feature_rate)
        self.factor, self.delay = decimator.factor, graph.latency + decimator.delay
        super().__init__(traced)
        packer = ExportedLiveGraph(graph).packer
        taps = torch.from_numpy(decimator.taps).float().view(1, 1, -1)
        values = {
            "taps": taps,  # symmetric
            "before": torch.zeros(1, taps.shape[-1] - 1),  # the newest samples of the voice
            "state": torch.zeros_like(packer.initial),
            "state64": torch.zeros_like(packer.initial64),
            "middle": torch.stack([graph.controls()[0], *torch.zeros(len(_KNOBS) - 1)]),
            "reach": torch.tensor([knob.reach for knob in _KNOBS]),
        }
        for name, value in values.items():
            self.register_buffer(name, value)

    def do_forward_pass(self, x: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Play a block [1, hop] of voice, with knobs [1] in 0..1."""
        knobs = torch.cat([params["semitones"], params["loudness"], params["gate"], params["noise"]]).flatten()
        offsets = (2 * knobs - 1) * self.reach
        controls = self.middle + torch.cat([torch.round(offsets[:1]), offsets[1:]])
        samples = torch.cat([self.before, x], dim=1)
        self.before = samples[:, self.hop :]
        voice = nn.functional.conv1d(samples[None], self.taps, stride=self.factor)[0, 0]
        noise = 2 * torch.rand(self.hop) - 1
        audio, _, self.state, self.state64 = self.model(voice, noise, controls, self.state, self.state64)
        return audio[None]

    def reset_model(self) -> bool:
        """Return to the state before the first block."""
        self.before, self.state = torch.zeros_like(self.before), torch.zeros_like(self.state)
        self.state64 = torch.zeros_like(self.state64)
        return True

    def get_neutone_parameters(self) -> list[ContinuousNeutoneParameter]:
        return [ContinuousNeutoneParameter(knob.name, knob.description, 0.5) for knob in _KNOBS]

    @torch.jit.export
    def is_input_mono(self) -> bool:
        return True

    @torch.jit.export
    def is_output_mono(self) -> bool:
        return True

    @torch.jit.export
    def get_native_sample_rates(self) -> list[int]:
        return [self.rate]

    @torch.jit.export
    def get_native_buffer_sizes(self) -> list[int]:
        return [self.hop]

    @torch.jit.export
    def calc_model_delay_samples(self) -> int:
        return self.delay

    def get_model_name(self) -> str:
        return ("Vox2Trumpet " + self.instrument)[:30]

    def get_model_authors(self) -> list[str]:
        return ["Vox2Trumpet"]

    def get_model_short_description(self) -> str:
        return "Sing, hum or whistle, and the instrument plays the same melody."

    def get_model_long_description(self) -> str:
        return "Made for one voice at a time, close to the microphone, without effects."

    def get_technical_description(self) -> str:
        return "DDSP: CREPE and A-weighted loudness, a recurrent decoder, harmonic and noise synthesizers."

    def get_tags(self) -> list[str]:
        return ["timbre transfer", "ddsp", "voice"]

    def get_model_version(self) -> str:
        return "1"

    def is_experimental(self) -> bool:
        return True


def export_neutone(model: NeuralGuitar, folder: Path) -> None:
    """Write ``model.nm``, its metadata and sounds to a folder; run the SDK's checks and benchmark.

    Raises:
        ValueError: the model cannot be exported, or the SDK refuses it.
        OSError: the folder cannot be written.
    """
    graph = LiveGraph(model)
    exported = ExportedLiveGraph(graph).eval()
    audio, packer = graph.config.audio, exported.packer
    voice, noise = torch.zeros(audio.feature_hop_length), torch.zeros(audio.hop_length)
    state, state64 = torch.zeros_like(packer.initial), torch.zeros_like(packer.initial64)
    with torch.no_grad():
        traced = torch.jit.trace(exported, (voice, noise, graph.controls(), state, state64))
    part = folder.with_name(f".part.{os.getpid()}.{folder.name}")
    try:
        save_neutone_model(NeutoneLive(traced, graph, model.instrument), part, dump_samples=True, submission=True)
        os.replace(part, folder)
    except AssertionError as error:
        raise ValueError(f"neutone_sdk refuses the model ({error}); nothing was written") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
