"""SWIFT's GaLore parameters: full training with the memory of low rank."""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from stages.arguments.base import Arguments, Strings, option

__all__ = ["GaloreArguments"]


class GaloreArguments(Arguments):
    """GaLore and Q-GaLore."""

    GROUP: ClassVar[str] = "GaLore Fine-tuning Parameters"

    use_galore: bool = option(False)
    """Project gradients to low rank."""
    galore_target_modules: Strings | None = option(None)
    """Modules whose gradients are projected, by a part of their name; attention and MLP if left out."""
    galore_rank: int = option(128, ge=1)
    """Rank that gradients are projected to."""
    galore_update_proj_gap: int = option(50, ge=1)
    """Steps between two new projections."""
    galore_scale: float = option(1.0)
    """Strength of the projected-back update."""
    galore_proj_type: Literal["std", "reverse_std", "right", "left", "full"] = option("std")
    """The side that is projected."""
    galore_optim_per_parameter: bool = option(False)
    """An optimizer for each parameter, stepped during the backward pass."""
    galore_with_embedding: bool = option(False)
    """Project the gradients of embeddings too."""
    galore_quantization: bool = option(False)
    """Q-GaLore: keep optimizer and projections in few bits."""
    galore_proj_quant: bool = option(False)
    """Quantize the projections."""
    galore_proj_bits: int = option(4, ge=2, le=8)
    """Bits of a quantized projection."""
    galore_proj_group_size: int = option(256, ge=1)
    """Values of a projection that share a scale."""
    galore_cos_threshold: float = option(0.4, ge=-1, le=1)
    """Similarity of successive projections from which the gap is widened."""
    galore_gamma_proj: int = option(2, ge=1)
    """Factor by which the gap is widened."""
    galore_queue_size: int = option(5, ge=1)
    """Successive projections whose similarity is averaged."""

    @model_validator(mode="after")
    def _settle_galore_optimizers(self) -> Self:
        if not (self.use_galore and self.galore_optim_per_parameter):
            return self
        if getattr(self, "gradient_accumulation_steps", 1) > 1:
            raise ValueError(
                "`--galore_optim_per_parameter` steps in each backward pass: drop `--gradient_accumulation_steps`"
            )
        if getattr(self, "max_grad_norm", 0):
            if "max_grad_norm" in self.model_fields_set:
                raise ValueError(
                    "`--galore_optim_per_parameter` never has all gradients, whose norm `--max_grad_norm` is about: "
                    "drop one of them"
                )
            self._resolve(max_grad_norm=0.0)
        return self

    @model_validator(mode="after")
    def _check_galore(self) -> Self:
        if self.use_galore and getattr(self, "train_type", "full") != "full":
            raise ValueError("`--use_galore` trains all weights: add `--train_type full`")
        if self.galore_optim_per_parameter and self.galore_quantization:
            raise ValueError(
                "`--galore_optim_per_parameter` does not go with `--galore_quantization`: drop one of them"
            )
        few_bits = ("proj_quant", "proj_bits", "proj_group_size", "cos_threshold", "gamma_proj", "queue_size")
        given = next((name for name in few_bits if self._given(f"galore_{name}")), None)
        if given is not None and not self.galore_quantization:
            raise ValueError(f"`--galore_{given}` is a part of Q-GaLore: add `--galore_quantization true`")
        if self.galore_quantization and not self.use_galore:
            raise ValueError("`--galore_quantization` is a form of GaLore: add `--use_galore true`")
        if self.galore_quantization and self.galore_proj_type != "std":
            raise ValueError(
                f"`--galore_proj_type {self.galore_proj_type}` does not go with `--galore_quantization`, "
                "which projects the shorter side: drop one of them"
            )
        return self
