"""What a melody is fitted to: the range, the loudness and the settings of one instrument, as plain values."""

from dataclasses import dataclass
from typing import Any, Protocol

from config import Config
from sound.plucks import PluckTable, typical_plucks


class TrainedModel(Protocol):
    """A model that says what it was trained on, as ``checkpoint.load_model`` returns it."""

    settings: Config | None
    instrument: str | None
    statistics: dict[str, Any] | None


@dataclass(frozen=True)
class InstrumentProfile:
    """An instrument as the functions of this package see it."""

    name: str  # such as "trumpet"
    f0_min: float  # Hz, of its range
    f0_max: float  # Hz
    f0_quantiles: tuple[float, ...]  # Hz, of the training data at 0, 1, ... 100 %
    loudness_quantiles: tuple[float, ...]  # dB, likewise
    articulation: str  # "sustained" or "plucked"
    plucks: PluckTable  # how its strings decay, if it is plucked
    config: Config  # settings of features, frames and transfer

    @classmethod
    def of(cls, model: TrainedModel) -> "InstrumentProfile":
        """Return the profile of a trained model.

        Raises:
            ValueError: the model is untrained, or its configuration does not know its instrument.
        """
        if model.settings is None or model.instrument is None or model.statistics is None:
            raise ValueError("this model was not trained; load one with checkpoint.load_model")
        return cls.from_statistics(model.instrument, model.settings, model.statistics)

    @classmethod
    def from_statistics(cls, name: str, config: Config, statistics: dict[str, Any]) -> "InstrumentProfile":
        """Return the profile of an instrument from the statistics in a checkpoint.

        Raises:
            ValueError: ``config`` does not know the instrument.
        """
        instrument = config.instrument(name)
        return cls(
            name=name,
            f0_min=instrument.f0_min,
            f0_max=instrument.f0_max,
            f0_quantiles=tuple(statistics["f0_quantiles"]),
            loudness_quantiles=tuple(statistics["loudness_quantiles"]),
            articulation=instrument.articulation,
            plucks=(
                PluckTable.from_dict(statistics["plucks"])
                if "plucks" in statistics
                else typical_plucks(statistics["loudness_quantiles"][99])
            ),
            config=config,
        )

    @property
    def median_f0(self) -> float:
        """The middle of the training data's pitches, Hz."""
        return self.f0_quantiles[50]
