"""Exponential moving average of the weights (Polyak and Juditsky, SIAM J. Control Optim. 1992).

The average over the last steps lies nearer the bottom of the loss than any single step, which noise in the gradient
throws about; it is what a learning rate near zero would reach later.
"""

import copy

import torch
from torch import nn


class WeightAverage:
    """A copy of a model whose weights follow the model's own, a little each step.

    The first steps count more, ``decay`` is not reached before step 9 / (1 - decay): else the untrained weights would
    weigh on the average for long.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights of a model after its ``step``-th step."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, weight in zip(self.model.parameters(), model.parameters()):
            average.lerp_(weight, 1 - decay)
