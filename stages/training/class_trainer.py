"""What is different in a trainer of classes: one label a row, and how many of them are found.

It goes in front of the trainer's own methods: `class StageTrainer(ClassTrainer, _StageTrainer, Trainer)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.training.classifier import class_loss
from stages.training.rows import IGNORED

if TYPE_CHECKING:
    from transformers import Trainer as Base

    from stages.training.measures import Measures
else:
    Base = object  # transformers is imported only where a trainer is made

__all__ = ["ClassTrainer"]


class ClassTrainer(Base):  # type: ignore[misc]
    """The loss is a mean over rows, also over those of several batches; `acc` is the share of rows that are right."""

    measures: Measures
    _loss_shifts_labels = False

    def _find_targets(self, inputs: Any) -> None:
        """Nothing: the labels are the targets."""

    def _token_loss(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """The loss of a batch, which is counted."""
        step = self.state.global_step if self.model.training else None
        self.measures.add_classes(outputs.logits, labels, step=step)
        return class_loss(outputs.logits, labels, num_items_in_batch, label_smoothing=self.args.label_smoothing_factor)

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """The loss of a batch, remembered with its number of rows."""
        import torch

        rows = int((inputs["labels"] != IGNORED).sum())
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, dict(inputs)).detach()
        self._sum += float(loss) * rows
        self._tokens += rows
        return loss, None, None
