"""SWIFT's Liger and TorchAcc parameters, and several processes: faster kernels, XLA devices, more devices."""

from typing import Any, ClassVar

from stages.arguments.base import Arguments, option

__all__ = ["LigerArguments", "ProcessArguments", "TorchAccArguments"]


class LigerArguments(Arguments):
    """Liger kernels."""

    GROUP: ClassVar[str] = "Liger Fine-tuning Parameters"

    use_liger: bool = option(False)
    """Train with Liger's kernels; needs a GPU."""


class ProcessArguments(Arguments):
    """Training in several processes."""

    GROUP: ClassVar[str] = "Transformers Trainer Parameters"

    nproc_per_node: int | None = option(None, ge=1)
    """Processes that train together, a GPU each or shares of the CPU's cores; NPROC_PER_NODE, else 1, if left out."""

    def key_fields(self) -> dict[str, Any]:
        """As ever, but one process needs no word: each batch has `nproc_per_node` times as many rows."""
        fields = super().key_fields()
        if fields.get("nproc_per_node") == 1:
            del fields["nproc_per_node"]
        return fields


class TorchAccArguments(Arguments):
    """TorchAcc."""

    GROUP: ClassVar[str] = "TorchAcc Parameters"

    model_layer_cls_name: str | None = option(None)
    """Class of the decoder layers that are sharded."""
    metric_warmup_step: float = option(0.0, ge=0, in_key=False)
    """Steps, or below 1 a share of them, that the measured speed leaves out."""
    fsdp_num: int = option(1, ge=1)
    """Devices that share the weights."""
    acc_steps: int = option(1, ge=1, in_key=False)
    """Steps between two measurements of training accuracy."""
