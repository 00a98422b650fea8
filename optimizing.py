"""What a training minimises, and in how large steps."""

import torch
from torch import nn

from config import Config, TrainConfig
from loss import LogMelLoss, MultiResolutionSTFTLoss


def learning_rate_at(step: int, settings: TrainConfig) -> float:
    """Return the learning rate; it depends on the step alone, so that training on is the same training."""
    decayed = settings.learning_rate * 0.5 ** (step / settings.learning_rate_half_life)
    return max(decayed, settings.min_learning_rate)


def build_loss(config: Config) -> MultiResolutionSTFTLoss | LogMelLoss:
    """Build the training loss of a configuration."""
    settings = config.loss
    loss = MultiResolutionSTFTLoss(
        settings.fft_sizes, settings.hop_sizes, settings.win_lengths, settings.mag_loss_weight, settings.eps
    )
    if not settings.mel_loss_weight:
        return loss
    from librosa.filters import mel  # a second that most trainings need not wait

    filters = mel(sr=config.audio.sample_rate, n_fft=settings.mel_fft_size, n_mels=settings.mel_bands, norm=None)
    return LogMelLoss(loss, torch.from_numpy(filters), settings.mel_loss_weight)


def build_optimizer(model: nn.Module, settings: TrainConfig) -> torch.optim.Adam:
    """Build what makes the steps; fused, it goes through the weights once, not once an operation."""
    return torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
