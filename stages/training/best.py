"""Which checkpoint of a run is best, and by what measure: `best_by(arguments)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.errors import ArgumentsError
from stages.training.nlg import NLG

if TYPE_CHECKING:
    from stages.arguments import TrainArguments

__all__ = ["Best", "best_by", "metric_of"]


@dataclass(frozen=True)
class Best:
    """A measure of validation.

    Attributes:
        name: as it is written in `--metric_for_best_model`, without `eval_`.
        greater_is_better: whether more of it is better.
    """

    name: str
    greater_is_better: bool

    @property
    def logged(self) -> str:
        """Its name in the log."""
        return f"eval_{self.name}"


def metric_of(arguments: TrainArguments) -> str:
    """`acc`, `nlg` or the name of a plugin's metric."""
    return arguments.metric or ("nlg" if arguments.predict_with_generate else "acc")


def best_by(arguments: TrainArguments) -> Best | None:
    """The measure that says which checkpoint is best; None if nothing depends on it.

    If none is given, it is rouge-l where answers are generated and compared, else the loss.

    Raises:
        ArgumentsError: validation does not measure it.
    """
    name = arguments.metric_for_best_model
    if name is None:
        if not (arguments.load_best_model_at_end or arguments.early_stop_interval or arguments.save_strategy == "best"):
            return None
        name = "rouge-l" if metric_of(arguments) == "nlg" else "loss"
    name = name.removeprefix("eval_")
    measured = _measured(arguments)
    if measured is not None and name not in measured:
        raise ArgumentsError(
            f"`--metric_for_best_model {name:.60}`: validation measures {', '.join(measured)}"
            + _further(arguments, name)
        )
    greater = arguments.greater_is_better
    return Best(name, not name.endswith("loss") if greater is None else greater)


def _measured(arguments: TrainArguments) -> list[str] | None:
    """The names of all measures; None where a plugin chooses them."""
    metric = metric_of(arguments)
    if metric not in ("acc", "nlg"):
        return None
    accuracy = "token_acc" if arguments.acc_strategy == "token" else "seq_acc"
    if arguments.num_labels is not None:
        accuracy = "acc"
    return ["loss", accuracy, *(NLG if metric == "nlg" else ())]


def _further(arguments: TrainArguments, name: str) -> str:
    if name in NLG:
        return ": give `--predict_with_generate true`, and `--metric nlg` or none"
    if name in ("token_acc", "seq_acc"):
        return f": give `--acc_strategy {'token' if name == 'token_acc' else 'sentence'}`"
    return ""
