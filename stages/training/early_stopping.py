"""Ends a run whose validations have not become better for a while: `make_early_stopping(3, "eval_loss", …)`.

How long that is, is counted from the log of the run, which is in every checkpoint: a run that goes on counts the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.training.best import Best

if TYPE_CHECKING:
    from transformers import TrainerCallback as Base
else:
    Base = object  # transformers is imported only where callbacks are made

__all__ = ["make_early_stopping", "validations_since_best"]


def validations_since_best(history: Sequence[Mapping[str, Any]], best: Best) -> int:
    """How many validations came after the best one.

    Args:
        history: the trainer's log.
        best: what is measured, and which way is better.
    """
    values = [entry[best.logged] for entry in history if best.logged in entry]
    since, record = 0, None
    for value in values:
        if record is None or (value > record if best.greater_is_better else value < record):
            since, record = 0, value
        else:
            since += 1
    return since


def make_early_stopping(patience: int, best: Best) -> Any:
    """A callback that stops a run after so many validations without improvement."""
    from transformers import TrainerCallback

    class Callback(_EarlyStopping, TrainerCallback):  # type: ignore[misc]
        pass

    return Callback(patience, best)


class _EarlyStopping(Base):  # type: ignore[misc]
    def __init__(self, patience: int, best: Best) -> None:
        self.patience, self.best = patience, best

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The validation has been logged already."""
        if validations_since_best(state.log_history, self.best) >= self.patience:
            control.should_training_stop = True
