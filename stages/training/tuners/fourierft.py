"""FourierFT (arXiv 2405.03003): a few entries of each update's spectrum are trained: `--train_type fourierft`.

As in the paper they start from a standard normal distribution, so the first step's outputs are not quite the base's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from stages.errors import ArgumentsError
from stages.training.tuners.peft_folder import PeftTuner, sides, swaps_sides

__all__ = ["FourierFtTuner"]


@dataclass(frozen=True)
class FourierFtTuner(PeftTuner):
    """Trains the entries; where they are follows from a seed."""

    METHOD: ClassVar[str] = "FourierFT"
    SAME: ClassVar[Sequence[str]] = ("scaling", "random_loc_seed")

    def config(self, model: Any) -> Any:
        """See `PeftTuner`."""
        from peft import FourierFTConfig

        given = self.arguments
        places = self.places(model)
        for path, module in self.linear_targets(model, places["target_modules"]).items():
            rows, columns = sides(module)
            if given.fourier_n_frequency > rows * columns:
                raise ArgumentsError(
                    f"`--fourier_n_frequency {given.fourier_n_frequency}`: the spectrum of {path} has {rows} x "
                    f"{columns} = {rows * columns} entries: lower it"
                )
        return FourierFTConfig(
            **places,
            n_frequency=given.fourier_n_frequency,
            scaling=given.fourier_scaling,
            fan_in_fan_out=swaps_sides(model),
        )
