"""Which libraries only some trainings compute with: `used_libraries(TrainArguments(quant_method="hqq", …))`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.arguments import TrainArguments

__all__ = ["used_libraries"]

QUANTIZED_BY = {"bnb": ("bitsandbytes",), "hqq": ("hqq",), "eetq": ("eetq", "kernels")}
OPTIMIZERS = re.compile(r"(?!.*torch).*(8bit|bnb|paged|lion|ademamix).*")
"""Those of transformers that bitsandbytes makes the steps of."""


def used_libraries(arguments: TrainArguments) -> tuple[str, ...]:
    """Distributions whose version changes what comes of these arguments, and not of others."""
    used = set(QUANTIZED_BY.get(arguments.quant_method or "", ()))
    if (arguments.use_galore and arguments.galore_quantization) or OPTIMIZERS.fullmatch(arguments.optim):
        used.add("bitsandbytes")
    return tuple(sorted(used))
