"""What is different in a trainer of classes: one label a row, and how many of them are found.

It goes in front of the trainer's own methods: `class StageTrainer(ClassTrainer, _StageTrainer, Trainer)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.training import group
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
    _right = 0.0
    _rows = 0.0
    _loss_shifts_labels = False

    def _find_targets(self, inputs: Any) -> None:
        """Nothing: the labels are the targets."""

    def _token_loss(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """The loss of a batch, which is counted; in training, in each step that `acc_steps` asks for."""
        known = labels != IGNORED
        if not (self.model.training and self.state.global_step % self.measures.steps):
            self._right = self._right + (outputs.logits.argmax(-1) == labels)[known].sum()
            self._rows = self._rows + known.sum()
        return class_loss(outputs.logits, labels, num_items_in_batch, label_smoothing=self.args.label_smoothing_factor)

    def _take_accuracy(self) -> float | None:
        """The share of rows that were right since it was last asked for; None if there were none."""
        right, rows = group.add_up([float(self._right), float(self._rows)])
        self._right = self._rows = 0.0
        return right / rows if rows else None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With `acc`, of the rows trained on since the last line."""
        if "loss" in logs and (accuracy := self._take_accuracy()) is not None:
            logs["acc"] = accuracy
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """With `eval_acc`; what was counted in training is not mixed with it."""
        training = self._right, self._rows
        self._right = self._rows = 0.0
        output = super().evaluation_loop(*args, **kwargs)
        accuracy = self._take_accuracy()
        if accuracy is not None:
            output.metrics["eval_acc"] = accuracy
        self._right, self._rows = training
        return output

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
