"""One step of a training: the loss, how large the step is, the step itself, and the average of the weights after it."""

import copy

import torch
from torch import Tensor, nn

from config import Config, TrainConfig
from loss import MultiResolutionSTFTLoss
from model import GruDecoder, NeuralGuitar, NoiseSource

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # of the decoder's products, in training


def learning_rate_at(step: int, settings: TrainConfig) -> float:
    """Return the learning rate; it depends on the step alone, so that training on is the same training."""
    decayed = settings.learning_rate * 0.5 ** (step / settings.learning_rate_half_life)
    return max(decayed, settings.min_learning_rate)


def build_loss(config: Config) -> MultiResolutionSTFTLoss:
    """Build the training loss of a configuration."""
    settings = config.loss
    return MultiResolutionSTFTLoss(
        settings.fft_sizes, settings.hop_sizes, settings.win_lengths, settings.mag_loss_weight, settings.eps
    )


def build_optimizer(model: nn.Module, settings: TrainConfig) -> torch.optim.Adam:
    """Build what makes the steps; fused, it goes through the weights once, not once an operation."""
    return torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)


def compilable_layers(model: NeuralGuitar) -> list[nn.Module]:
    """Return the layers that torch.compile can translate; GRU, synthesis and loss are written for speed as they are."""
    layers = [model.embedding, model.decoder, getattr(model, "projection", None)]
    return [layer for layer in layers if layer is not None and not isinstance(layer, (GruDecoder, nn.Identity))]


def is_compile_error(error: Exception) -> bool:
    """Return True if an error is torch.compile's own: a compiler is missing, say, or a GPU too old."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def train_step(
    model: nn.Module,
    loss_function: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    max_grad_norm: float,
    generator: NoiseSource = None,
    weight: float = 1.0,
    precision: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Do one optimizer step and return its losses and gradient norm, still on the device.

    ``weight`` makes up for shares of unequal size where several processes average their gradients;
    ``precision`` is that of the decoder's products, all else is done in float32.
    """
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(batch["f0"].device.type, precision, enabled=precision != torch.float32):
        audio = model(batch["f0"], batch["loudness"], generator, batch.get("plucks"))
    loss = loss_function(audio, batch["audio"], batch.get("bandwidth"))
    (weight * loss.total).backward()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    return {**{f"{name}_loss": value.detach() for name, value in loss._asdict().items()}, "grad_norm": grad_norm}


class WeightAverage:
    """A copy of a model whose weights follow the model's own, a little each step.

    Averaged over the last steps (Polyak and Juditsky, SIAM J. Control Optim. 1992) they lie nearer the bottom of the
    loss than after any single step, which noise in the gradient throws about: where a learning rate near zero would
    arrive later. The first steps count more, ``decay`` is not reached before step 9 / (1 - decay): else the untrained
    weights would weigh on the average for long.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        for module in self.model.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()  # copied one by one; cuDNN wants them in one piece

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights of a model after its ``step``-th step."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, weight in zip(self.model.parameters(), model.parameters()):
            average.lerp_(weight, 1 - decay)
