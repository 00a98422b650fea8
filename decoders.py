"""The decoders: a GRU (Cho et al., EMNLP 2014), and a causal Transformer with windowed attention.

Each turns curves, [B, T, 2] (or embedded), into what the model decides its controls from, [B, T, hidden_size]:
``forward`` a whole sequence, ``proceed`` the frames that follow others, in blocks of any length.
"""

import math

import torch
from torch import Tensor, nn

from config import ModelConfig
from sound.gru import GruLayer, step
from sound.threads import alone

# Of one sound, a frame's product with a weight of up to so many numbers is not shared by threads: to meet after each
# takes them as long. On two quiet cores it is no faster, on busy ones ten times as slow.
_UNSHARED_WEIGHT = 2**20


def count_inputs(config: ModelConfig) -> int:
    """Return how many numbers a frame the decoder, or the network before it, hears."""
    return 3 if config.attack_frames else 2


class GruDecoder(nn.Module):
    """[B, T, 2] (or embedded) -> [B, T, hidden_size]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dropout = config.dropout if config.num_layers > 1 else 0.0
        n_inputs = config.embed_size or count_inputs(config)
        self.gru = nn.GRU(n_inputs, config.hidden_size, config.num_layers, batch_first=True, dropout=dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.device.type != "cpu" or (len(inputs) == 1 and not torch.is_grad_enabled()):
            # Whatever autocast asks for, cuDNN's GRU takes float16, in which gradients as small as these are lost.
            with torch.autocast(inputs.device.type, enabled=False):
                return self.proceed(inputs.float(), None)[0]
        for number, (weight_in, weight, bias_in, bias) in enumerate(self.gru.all_weights):
            if number:
                inputs = nn.functional.dropout(inputs, self.gru.dropout, self.training)
            inputs = GruLayer.apply(inputs, weight_in, weight, bias_in, bias)
        return inputs

    def proceed(self, inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Decode the frames that follow a state, the start if None; return what ``forward`` does, and the state."""
        small = self.gru.weight_hh_l0.numel() <= _UNSHARED_WEIGHT
        if not small or torch.is_grad_enabled() or torch.compiler.is_exporting():
            return self.gru(inputs, state)
        if inputs.shape[:2] == (1, 1) and inputs.device.type == "cpu" and not self.training:
            return step(self.gru, inputs, state)
        return alone(lambda: self.gru(inputs, state), inputs.device)


class TransformerDecoder(nn.Module):
    """[B, T, 2] (or embedded) -> [B, T, hidden_size] by causal self-attention; time and memory grow linearly with T."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(config.embed_size or count_inputs(config), config.hidden_size)
        self.window = config.attention_window
        self.layers = nn.ModuleList(_TransformerLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.embed(inputs)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden)

    def proceed(self, inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Decode the frames that follow a state: the inputs before them that can be seen, from a window's start."""
        known = inputs if state is None else torch.cat([state, inputs], dim=1)
        unseen = max(0, known.shape[1] // self.window - len(self.layers)) * self.window
        return self(known)[:, -inputs.shape[1] :], known[:, unseen:]


class _TransformerLayer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.attention_norm = nn.LayerNorm(size)
        self.attention = _WindowedAttention(size, config.num_heads, config.attention_window)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden)))
        return hidden + self.dropout(self.feed_forward(hidden))


class _WindowedAttention(nn.Module):
    """Causal attention over the frame's own window and the one before it.

    Time is cut into windows of W frames, so a frame sees W to 2 W frames back whatever the length.
    Distance enters as a learned bias, which knows no absolute position: a minute sounds like a second.
    """

    def __init__(self, size: int, num_heads: int, window: int) -> None:
        super().__init__()
        if size % num_heads:
            raise ValueError(f"hidden_size {size} cannot be shared by {num_heads} heads")
        self.num_heads = num_heads
        self.window = window
        self.project_in = nn.Linear(size, 3 * size)
        self.project_out = nn.Linear(size, size)
        self.distance_bias = nn.Parameter(torch.zeros(num_heads, 2 * window))
        distance = torch.arange(window, 2 * window)[:, None] - torch.arange(2 * window)  # (W, 2W) frames back
        self.register_buffer("distance", distance.clamp(min=0), persistent=False)
        self.register_buffer("future", distance < 0, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        n_frames = hidden.shape[1]
        hidden = nn.functional.pad(hidden, (0, 0, 0, -n_frames % self.window))
        query, key, value = self.project_in(hidden).chunk(3, dim=-1)
        attended = nn.functional.scaled_dot_product_attention(
            self._windows(query), self._with_previous(key), self._with_previous(value), attn_mask=self._mask(hidden)
        )  # (B, windows, heads, W, head size)
        return self.project_out(attended.transpose(2, 3).flatten(3).flatten(1, 2)[:, :n_frames])

    def _windows(self, frames: Tensor) -> Tensor:
        """[B, T, C] -> [B, windows, heads, W, C / heads]."""
        return frames.unflatten(1, (-1, self.window)).unflatten(-1, (self.num_heads, -1)).transpose(2, 3)

    def _with_previous(self, frames: Tensor) -> Tensor:
        here = self._windows(frames)
        before = torch.cat([torch.zeros_like(here[:, :1]), here[:, :-1]], dim=1)
        return torch.cat([before, here], dim=3)  # (B, windows, heads, 2W, head size)

    def _mask(self, hidden: Tensor) -> Tensor:
        """Return the distance bias, minus infinity for the future and for what lies before the first frame."""
        bias = self.distance_bias[:, self.distance].masked_fill(self.future, -math.inf)  # (heads, W, 2W)
        n_windows = hidden.shape[1] // self.window
        mask = bias.expand(n_windows, -1, -1, -1).clone()
        mask[0, :, :, : self.window] = -math.inf
        return mask
