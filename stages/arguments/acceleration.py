"""SWIFT's Liger and TorchAcc parameters: faster kernels, and XLA devices."""

from typing import ClassVar

from stages.arguments.base import Arguments, option

__all__ = ["LigerArguments", "TorchAccArguments"]


class LigerArguments(Arguments):
    """Liger kernels."""

    GROUP: ClassVar[str] = "Liger Fine-tuning Parameters"

    use_liger: bool = option(False)
    """Train with Liger's kernels; needs a GPU."""


class TorchAccArguments(Arguments):
    """TorchAcc."""

    GROUP: ClassVar[str] = "TorchAcc Parameters"

    model_layer_cls_name: str | None = option(None)
    """Class of the decoder layers that are sharded."""
    metric_warmup_step: float = option(0.0, ge=0)
    """Steps, or below 1 a share of them, that the measured speed leaves out."""
    fsdp_num: int = option(1, ge=1)
    """Devices that share the weights."""
    acc_steps: int = option(1, ge=1)
    """Steps between two measurements of training accuracy."""
