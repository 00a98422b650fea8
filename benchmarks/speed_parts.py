"""What ``benchmark.py`` measures: one function for each part builds ours, the reference and, for some, a floor.

Ours are measured as they are done in a training step, within ``threads.alone``. To measure one thing more, write such a
function and add a ``Part`` to ``PARTS``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import textbook
from config import DEFAULT_PRESET, Config, load_config
from loss import StftLoss
from model import Vox2Trumpet, scale_f0, scale_loudness
def alone(work, device):
    return work()

from synth import FilteredNoiseSynthesizer, harmonic_bank
from training.optimization import build_loss, build_optimizer, train_step

Work = Callable[[], Tensor]  # does the thing once; what it returns shows that two variants do the same
CPU = torch.device("cpu")
LossFunction = Callable[[Tensor, Tensor], StftLoss]


@dataclass(frozen=True)
class Workload:
    """How much is done at once; the goals hold for the defaults."""

    config_name: str = DEFAULT_PRESET
    batch_size: int = 16
    crop_seconds: float = 1.0  # of each item of the batch
    render_seconds: float = 10.0  # of inference

    @property
    def config(self) -> Config:
        return load_config(preset=self.config_name)


@dataclass(frozen=True)
class Part:
    """One row of the table."""

    key: str  # on the command line
    name: str
    reference: str  # what "reference" is
    build: Callable[[Workload], dict[str, Work]]  # "ours", "reference" and, where there is one, "floor"
    goal: float | None = None  # times faster than the reference
    floor_goal: float | None = None  # at most so many times the floor
    memory_goal: float | None = None  # times less
    imports_goal: float | None = None  # at most so many MB over the imports


class TextbookBank(nn.Module):
    """The textbook bank in the place of HarmonicSynthesizer."""

    def __init__(self, sample_rate: int, hop_length: int) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.hop_length = hop_length

    def forward(self, f0: Tensor, harmonic_amplitudes: Tensor) -> Tensor:
        return textbook.harmonic_bank(f0, harmonic_amplitudes, self.sample_rate, self.hop_length)


class PlainGru(nn.Module):
    """PyTorch's own GRU in the place of GruDecoder."""

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        self.gru = gru

    def forward(self, inputs: Tensor) -> Tensor:
        return self.gru(inputs)[0]


def build_bank(load: Workload) -> dict[str, Work]:
    """Forward and backward through the harmonic bank; as in training, f0 needs no gradient."""
    config = load.config
    f0, _ = make_curves(load.batch_size, load.crop_seconds, config)
    amplitudes = torch.rand(*f0.shape[:2], config.model.n_harmonics).softmax(dim=-1).requires_grad_()
    gradient = torch.randn(load.batch_size, f0.shape[1] * config.audio.hop_length)

    def run(bank: Callable[..., Tensor]) -> Tensor:
        amplitudes.grad = None
        audio = bank(f0, amplitudes, config.audio.sample_rate, config.audio.hop_length)
        audio.backward(gradient)
        return audio.detach()

    return {"ours": lambda: alone(lambda: run(harmonic_bank), CPU), "reference": lambda: run(textbook.harmonic_bank)}


def build_noise(load: Workload) -> dict[str, Work]:
    """Forward and backward through the filtered noise, against one FIR filter made and transformed a frame."""
    config = load.config
    n_frames = config.audio.seconds_to_frames(load.crop_seconds)
    synthesizer = FilteredNoiseSynthesizer(config.model.n_noise_bands, config.audio.hop_length)
    magnitudes = torch.rand(load.batch_size, n_frames, config.model.n_noise_bands).requires_grad_()
    noise, gradient = torch.rand(2, load.batch_size, n_frames * config.audio.hop_length)

    def run(render: Callable[..., Tensor]) -> Tensor:
        magnitudes.grad = None
        audio = render(noise, magnitudes)
        audio.backward(gradient)
        return audio.detach()

    def plain(noise: Tensor, magnitudes: Tensor) -> Tensor:
        return textbook.filter_noise(noise, magnitudes, config.audio.hop_length)

    return {"ours": lambda: alone(lambda: run(synthesizer.filter), CPU), "reference": lambda: run(plain)}


def build_stft_loss(load: Workload) -> dict[str, Work]:
    """Forward and backward through the loss, against torch.stft and autograd."""
    config = load.config
    n_samples = config.audio.seconds_to_frames(load.crop_seconds) * config.audio.hop_length
    prediction, target = 0.1 * torch.randn(2, load.batch_size, n_samples)
    prediction.requires_grad_()

    def run(loss_function: LossFunction) -> Tensor:
        prediction.grad = None
        total = loss_function(prediction, target).total
        total.backward()
        return total.detach()

    ours, plain = build_loss(config), build_textbook_loss(config)
    return {"ours": lambda: alone(lambda: run(ours), CPU), "reference": lambda: run(plain)}


def build_decoder(load: Workload) -> dict[str, Work]:
    """Forward and backward through the decoder, against PyTorch's own GRU; no reference where it is no GRU."""
    config = load.config
    inputs = _decoder_inputs(*make_curves(load.batch_size, load.crop_seconds, config))
    works = {}
    for name, model in build_models(config).items():
        decoder = model.decoder if name == "ours" else getattr(model.decoder, "gru", model.decoder)
        works[name] = lambda decoder=decoder: _forward_backward(decoder, inputs)
    return works | {"ours": lambda ours=works["ours"]: alone(ours, CPU)}


def _forward_backward(module: nn.Module, inputs: Tensor) -> Tensor:
    module.zero_grad(set_to_none=True)
    hidden = module(inputs)
    hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    hidden.sum().backward()
    return hidden.detach()


def build_textbook_step(load: Workload) -> dict[str, Work]:
    """One whole training step against one that is the textbook's all through: GRU, bank and loss."""
    works = build_step(load)
    config = load.config
    model = build_models(config)["reference"]
    if config.model.decoder == "gru":
        model.decoder = PlainGru(model.decoder.gru)
    reference = make_step(model, build_textbook_loss(config), config, make_batch(load))
    return {"ours": works["ours"], "reference": reference}


def build_step(load: Workload) -> dict[str, Work]:
    """One whole training step; the floor is forward and backward through the GRU alone."""
    config = load.config
    batch = make_batch(load)
    f0, loudness = batch["f0"], batch["loudness"]

    def step_of(model: Vox2Trumpet) -> Work:
        return make_step(model, build_loss(config), config, batch)

    gru = build_gru(config)

    def floor() -> Tensor:
        gru.zero_grad(set_to_none=True)
        hidden, _ = gru(_decoder_inputs(f0, loudness))
        hidden.sum().backward()
        return hidden.detach()

    works = {name: step_of(model) for name, model in build_models(config).items()}
    works |= {"ours": lambda ours=works["ours"]: alone(ours, CPU)}
    return works | ({"floor": floor} if gru else {})


def make_batch(load: Workload) -> dict[str, Tensor]:
    """Return what the data loader gives a training step."""
    config = load.config
    f0, loudness = make_curves(load.batch_size, load.crop_seconds, config)
    n_samples = f0.shape[1] * config.audio.hop_length
    audio = 0.1 * torch.randn(load.batch_size, n_samples, generator=torch.Generator().manual_seed(0))
    return {"f0": f0, "loudness": loudness, "audio": audio}


def make_step(
    model: Vox2Trumpet,
    loss_function: LossFunction,
    config: Config,
    batch: dict[str, Tensor],
    precision: torch.dtype = torch.float32,
) -> Work:
    """Return training steps of this model with this loss, where the batch is."""
    optimizer, most = build_optimizer(model, config.train), config.train.max_grad_norm

    def step() -> Tensor:
        noise = torch.Generator(batch["f0"].device).manual_seed(0)
        return train_step(model, loss_function, optimizer, batch, most, noise, precision=precision)["total_loss"]

    return step


def build_textbook_loss(config: Config) -> LossFunction:
    """Return the loss by torch.stft and autograd."""
    settings = config.loss
    resolutions = list(zip(settings.fft_sizes, settings.hop_sizes, settings.win_lengths))

    def compare(prediction: Tensor, target: Tensor) -> StftLoss:
        total = textbook.stft_loss(prediction, target, resolutions, settings.mag_loss_weight, settings.eps)
        return StftLoss(total, total.detach(), total.detach())

    return compare


def build_inference(load: Workload) -> dict[str, Work]:
    """Curves in, sound out, as transfer.py plays them; the floor is the GRU alone."""
    config = load.config
    f0, loudness = make_curves(1, load.render_seconds, config)
    gru = build_gru(config)

    def play(model: Vox2Trumpet) -> Work:
        return torch.inference_mode()(lambda: model(f0, loudness, torch.Generator().manual_seed(0)))

    works = {name: play(model.eval()) for name, model in build_models(config).items()}
    floor = torch.inference_mode()(lambda: gru(_decoder_inputs(f0, loudness))[0])
    return works | ({"floor": floor} if gru else {})


def build_models(config: Config) -> dict[str, Vox2Trumpet]:
    """Return the model and its twin of the same weights that sounds through the textbook bank."""
    models = {}
    for name in ("ours", "reference"):
        torch.manual_seed(0)
        models[name] = Vox2Trumpet(config.model, config.audio)
    models["reference"].harmonic_synthesizer = TextbookBank(config.audio.sample_rate, config.audio.hop_length)
    return models


def build_gru(config: Config) -> nn.GRU | None:
    """Return PyTorch's own GRU of the decoder's size, or None where the decoder is no GRU."""
    if config.model.decoder != "gru":
        return None
    return nn.GRU(2, config.model.hidden_size, config.model.num_layers, batch_first=True)


def make_curves(n_batch: int, seconds: float, config: Config) -> tuple[Tensor, Tensor]:
    """Return f0 in Hz and loudness in dB (-40 to -10), [B, T, 1] each.

    Each item, or each second of a single one, is a note with vibrato, anywhere between the lowest
    and the highest of a guitar. The higher it is, the fewer harmonics lie below Nyquist.
    """
    generator = torch.Generator().manual_seed(0)
    n_frames, lowest, highest = config.audio.seconds_to_frames(seconds), *_range(config)
    n_notes = 1 + n_frames // round(config.audio.frame_rate) if n_batch == 1 else 1
    note = lowest * (highest / lowest) ** torch.rand(n_batch, n_notes, 1, generator=generator)
    note = note.repeat_interleave(-(-n_frames // n_notes), dim=1)[:, :n_frames]
    beat = torch.arange(n_frames)[:, None] / config.audio.frame_rate  # (T, 1) in seconds
    f0 = note * (1 + 0.01 * torch.sin(2 * torch.pi * 5.5 * beat))
    return f0, -40 + 30 * torch.rand(n_batch, n_frames, 1, generator=generator)


def _range(config: Config) -> tuple[float, float]:
    guitar = config.instrument("guitar")
    return guitar.f0_min, guitar.f0_max


def _decoder_inputs(f0: Tensor, loudness: Tensor) -> Tensor:
    return torch.cat([scale_f0(f0), scale_loudness(loudness)], dim=-1)


PARTS = (
    Part("bank", "harmonic bank, forward + backward", "textbook bank", build_bank, goal=8, memory_goal=3),
    Part("noise", "filtered noise, forward + backward", "a filter a frame", build_noise),
    Part("loss", "four-resolution loss, forward + backward", "torch.stft, autograd", build_stft_loss),
    Part("decoder", "decoder, forward + backward", "PyTorch's own GRU", build_decoder),
    Part("step", "training step", "step with textbook bank", build_step, goal=4, floor_goal=1.7, imports_goal=500),
    Part("textbook_step", "training step", "all textbook: nn.GRU, bank, loss", build_textbook_step, goal=4.5),
    Part("inference", "model inference", "model with textbook bank", build_inference, goal=3, floor_goal=1.8),
)
