"""BOFT (arXiv 2311.06243): each layer's inputs are rotated, its outputs scaled: `--train_type boft`.

With one butterfly factor, which is SWIFT's, the rotation is made of blocks along the diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from stages.errors import ArgumentsError
from stages.training.tuners.peft_folder import PeftTuner

__all__ = ["BoftTuner"]


@dataclass(frozen=True)
class BoftTuner(PeftTuner):
    """Trains skew-symmetric blocks, which start at zero, and a scale for each output, which starts at one."""

    METHOD: ClassVar[str] = "BOFT"
    SAME: ClassVar[Sequence[str]] = ("boft_n_butterfly_factor",)

    def config(self, model: Any) -> Any:
        """See `PeftTuner`."""
        from peft import BOFTConfig
        from peft.tuners.boft import layer

        # Else peft tries for each layer to compile a CUDA extension, which one factor does not need.
        layer._FBD_CUDA = False
        given = self.arguments
        size, number = given.boft_block_size, given.boft_block_num
        if not size and not number:
            raise ArgumentsError("`--boft_block_size 0` leaves the blocks to `--boft_block_num`: give it")
        places = self.places(model)
        for path, module in self.linear_targets(model, places["target_modules"], conv1d=False).items():
            inputs = int(module.in_features)  # type: ignore[arg-type]
            if inputs % (size or number):
                flag = f"--boft_block_size {size}" if size else f"--boft_block_num {number}"
                raise ArgumentsError(f"`{flag}` does not divide the {inputs} inputs of {path}: choose another")
        return BOFTConfig(
            **places,
            boft_block_size=size,
            boft_block_num=number,
            boft_n_butterfly_factor=1,
            boft_dropout=given.boft_dropout,
        )
