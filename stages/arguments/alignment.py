"""SWIFT's human alignment parameters: learning from preferences."""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from stages.arguments.base import Arguments, option

__all__ = ["AlignmentArguments"]

_LOSSES = {"dpo": "sigmoid", "cpo": "sigmoid", "simpo": "simpo", "kto": "kto", "orpo": None}


class AlignmentArguments(Arguments):
    """DPO, ORPO, SimPO, KTO, CPO."""

    GROUP: ClassVar[str] = "Human Alignment Parameters"

    rlhf_type: Literal["dpo", "orpo", "simpo", "kto", "cpo"] = option("dpo")
    """The algorithm."""
    ref_model: str | None = option(None)
    """The model that the trained one is held against; for full training with dpo and kto, model if left out."""
    ref_model_type: str | None = option(None)
    """Its model_type."""
    ref_model_revision: str | None = option(None)
    """Its model_revision."""
    beta: float | None = option(None, ge=0)
    """How strongly the model is held to the reference; 2.0 for simpo and 0.1 otherwise if left out."""
    label_smoothing: float = option(0.0, ge=0, le=0.5)
    """Share of preferences taken to be wrong, for dpo, cpo and simpo."""
    rpo_alpha: float = option(1.0, ge=0)
    """Weight of the likelihood of chosen answers in dpo; 0 is plain DPO."""
    cpo_alpha: float = option(1.0, ge=0)
    """Weight of the likelihood of chosen answers in cpo and simpo."""
    simpo_gamma: float = option(1.0, ge=0)
    """Margin between chosen and rejected answers in simpo, usually 0.5 to 1.5."""
    desirable_weight: float = option(1.0, gt=0)
    """Weight of desirable answers in kto."""
    undesirable_weight: float = option(1.0, gt=0)
    """Weight of undesirable answers in kto."""

    @model_validator(mode="after")
    def _settle_alignment(self) -> Self:
        kind = self.rlhf_type
        if self.label_smoothing and kind in ("kto", "orpo"):
            raise ValueError(f"`--label_smoothing` does not go with `--rlhf_type {kind}`: use dpo, cpo or simpo")
        self._check_reference(full=getattr(self, "train_type", "full") == "full")
        if kind == "kto" and getattr(self, "per_device_train_batch_size", 2) < 2:
            raise ValueError(
                "`--rlhf_type kto` compares rows of a batch: set `--per_device_train_batch_size` to 2 or more"
            )
        if self.beta is None:
            self._resolve(beta=2.0 if kind == "simpo" else 0.1)
        if getattr(self, "loss_type", "") is None:
            self._resolve(loss_type=_LOSSES[kind])
        if kind != "orpo" and getattr(self, "loss_scale", "last_round") == "default":
            self._resolve(loss_scale="last_round")
        return self

    def _check_reference(self, *, full: bool) -> None:
        needs_one = full and self.rlhf_type in ("dpo", "kto")
        if self.ref_model is not None and not needs_one:
            where = f"`--rlhf_type {self.rlhf_type}`" if full else "an adapter (`--train_type`)"
            raise ValueError(f"`--ref_model` is not used with {where}: drop it")
        if self.ref_model is None and needs_one and getattr(self, "model", None):
            self._resolve(ref_model=self.model)  # type: ignore[attr-defined]
