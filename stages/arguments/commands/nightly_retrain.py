"""The arguments of the flow that trains anew when the data has changed: `nightly-retrain`."""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from stages.arguments.base import Arguments, option
from stages.arguments.commands.sft_then_export import SftThenExportArguments

__all__ = ["NightlyRetrainArguments", "RetrainArguments"]


class RetrainArguments(Arguments):
    """Where a retraining starts, and what it has to beat."""

    GROUP: ClassVar[str] = "Retraining Parameters"

    retrain_from: Literal["base", "published"] = option("base")
    """Start from the base model, or from the adapter that was published (or, without a hub, accepted) last."""
    compare_by: str = option("eval_loss")
    """Metric in which the new model has to beat the former one: losses and perplexity by being lower, others higher."""
    former_model: str | None = option(None)
    """Model to beat, a folder or sha256:…; the one that was published or accepted last if left out."""


class NightlyRetrainArguments(SftThenExportArguments, RetrainArguments):
    """Retraining when something has changed, publishing what is better."""

    NAME: ClassVar[str] = "nightly-retrain"

    @model_validator(mode="after")
    def _check_retraining(self) -> Self:
        if self.num_labels is not None:
            raise ValueError(
                "`--num_labels` trains a classifier, and what a retraining compares is measured of models that write: "
                "use `sft` or `sft-then-export`"
            )
        if self.retrain_from == "published" and self.train_type in ("full", "llamapro"):
            raise ValueError(
                f"`--retrain_from published` goes on from an adapter: drop `--train_type {self.train_type}`"
            )
        if not (self.split_dataset_ratio > 0 or self.val_dataset or self.eval_dataset):
            raise ValueError(
                "nothing tells the new model from the former one: give `--val_dataset`, `--split_dataset_ratio` or "
                "`--eval_dataset`"
            )
        if self.compare_by in ("eval_loss", "perplexity") and not (self.split_dataset_ratio > 0 or self.val_dataset):
            raise ValueError(
                f"`--compare_by {self.compare_by}` needs held-out rows: give `--val_dataset` or `--split_dataset_ratio`"
            )
        if self.compare_by not in ("eval_loss", "perplexity") and not self.eval_dataset:
            raise ValueError(f"`--compare_by {self.compare_by}` is a benchmark's score: add its `--eval_dataset`")
        return self
