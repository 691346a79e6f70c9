"""VeRA (arXiv 2310.11454): random matrices that all layers share, two trained vectors a layer: `--train_type vera`.

ΔW = diag(b) B diag(d) A. B and A are made from a seed; they are stored with the vectors unless they are not wanted.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from stages.training.tuners.peft_folder import PeftTuner, swaps_sides

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["VeraTuner"]

SEED = 0


@dataclass(frozen=True)
class VeraTuner(PeftTuner):
    """Trains b, which starts at zero, and d."""

    METHOD: ClassVar[str] = "VeRA"
    SAME: ClassVar[Sequence[str]] = ("projection_prng_key",)

    def config(self, model: Any) -> Any:
        """See `PeftTuner`. A number as `vera_projection_prng_key` is the seed; a flag says what is stored."""
        from peft import VeraConfig

        given = self.arguments
        key = given.vera_projection_prng_key
        places = self.places(model)
        self.linear_targets(model, places["target_modules"])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Specified to not save vera_A")  # which was asked for
            return VeraConfig(
                **places,
                r=given.vera_rank,
                projection_prng_key=SEED if isinstance(key, bool) else key,
                save_projection=key if isinstance(key, bool) else True,
                vera_dropout=given.vera_dropout,
                d_initial=given.vera_d_initial,
                fan_in_fan_out=swaps_sides(model),
            )

    def put(self, model: Any, tensors: dict[str, Tensor]) -> None:
        """See `PeftTuner`."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Specified to not load vera_A")
            super().put(model, tensors)
