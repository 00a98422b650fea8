"""Blend of two instruments: their controls are interpolated frame by frame and played by one synthesizer.

    ./venv/bin/python transfer.py --input examples/hum.wav --blend violin:0.4 --output out/blend.wav

Interpolating harmonic amplitudes and noise magnitudes instead of audio gives a single tone: both instruments share one
phase, so there is no beating. DDSP (Engel et al., ICLR 2020) interpolates timbres in the same way.
"""

from typing import Any

from torch import Tensor, nn

from model import Controls, NeuralGuitar


class BlendedModel(nn.Module):
    """Interpolation of two models. Register, range, loudness and articulation come from the first model."""

    def __init__(self, first: NeuralGuitar, second: NeuralGuitar, share: float) -> None:
        """Store two models from ``checkpoint.load_model`` and the share of the second, 0..1.

        Raises:
            ValueError: the share is out of range, the models differ in sample rate or in their controls, or a model has
                ``onset_inputs``.
        """
        super().__init__()
        if not 0 <= share <= 1:
            raise ValueError(f"the share of a blended instrument should be between 0 and 1, not {share}")
        for model in (first, second):
            if model.config.onset_inputs:
                raise ValueError(f"the {model.instrument} has onset_inputs and cannot be blended")
        described = [
            (model.audio.sample_rate, model.config.n_harmonics, model.config.n_noise_bands) for model in (first, second)
        ]
        if described[0] != described[1]:
            raise ValueError(
                f"{first.instrument} and {second.instrument} cannot be blended: {described[0]} against {described[1]} "
                "(sample rate, harmonics, noise bands)"
            )
        self.first, self.second, self.share = first, second, share

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the first model, such as settings, statistics or synthesizers."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("first"), name)

    def initial_state(self) -> tuple:
        """Return the states of both models before the first frame of a sound."""
        return self.first.initial_state(), self.second.initial_state()

    def step(
        self, f0: Tensor, loudness: Tensor, state: tuple | None, plucks: Tensor | None = None
    ) -> tuple[Controls, tuple]:
        """Return the interpolated controls of the next frames, and the next state.

        The arguments are those of ``NeuralGuitar.step``.
        """
        first, second = state or (None, None)
        one, first = self.first.step(f0, loudness, first, plucks)
        two, second = self.second.step(f0, loudness, second, plucks)
        mixed = Controls(*(a + self.share * (b - a) for a, b in zip(one, two)))
        return mixed, (first, second)
