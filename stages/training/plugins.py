"""What a user's own file can add to training: an optimizer, a loss, a metric, each known by a name.

A file given with `--custom_register_path mine.py`, to be asked for with `--loss_type focal`:

    from stages.training.plugins import register_loss

    @register_loss("focal")
    def focal(outputs, labels, num_items_in_batch=None):
        …
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from stages.arguments.message import closest
from stages.arguments.training import OURS
from stages.errors import ArgumentsError, MartletError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Seq2SeqTrainingArguments

    from stages.arguments import TrainArguments

__all__ = [
    "LOSSES",
    "METRICS",
    "OPTIMIZERS",
    "Loss",
    "Metric",
    "MetricContext",
    "MetricMaker",
    "OptimizerFactory",
    "Predicted",
    "blamed",
    "check_plugins",
    "check_registered",
    "load_for_training",
    "register_loss",
    "register_metric",
    "register_optimizer",
]

T = TypeVar("T", bound=Callable[..., Any])


class OptimizerFactory(Protocol):
    """SWIFT's way to make an optimizer."""

    def __call__(self, args: Seq2SeqTrainingArguments, model: Any, train_dataset: Any, /) -> Any:
        """The optimizer, or `(optimizer, scheduler)`; a scheduler of None is the one that `--lr_scheduler_type` names.

        Its whole state must be in `state_dict()`, as tensors and plain values: a run that goes on takes it from there.

        Args:
            args: transformers' settings, among them `learning_rate`, `weight_decay`, `adam_beta1`.
            model: with the parameters to train, those that have `requires_grad`.
            train_dataset: the rows; those of a stream have no length.
        """


class Loss(Protocol):
    """SWIFT's way to write a loss. A parameter that a function does not take is not passed."""

    def __call__(
        self,
        outputs: Any,
        labels: Tensor,
        /,
        *,
        loss_scale: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """A scalar with a gradient.

        Args:
            outputs: of the model: `outputs.logits`, (rows, tokens, vocabulary); those at a position predict the next.
            labels: (rows, tokens), -100 where nothing is trained.
            loss_scale: (rows, tokens), the weights of `--loss_scale`; None for 1 everywhere. A function that does not
                take it cannot be used with such weights.
            num_items_in_batch: predicted tokens of all batches of an optimizer step, which the sum over tokens is
                divided by; None for those of this batch. What a function returns that does not take it is a mean over
                the predicted tokens of its batch.
            label_smoothing: `--label_smoothing_factor`, which is refused where a function does not take it.
        """


@dataclass(frozen=True)
class Predicted:
    """What validation predicted, row by row; row `i` of one belongs to row `i` of the others.

    Attributes:
        predictions: token ids, int arrays of one dimension. Where answers were generated, the generated ones; else at
            each place with a label the likeliest token, given all that stands before it.
        labels: the ids that should have come: of the answers; without -100.
        texts: the generated answers, decoded; None where nothing was generated.
        references: the answers of the rows, decoded; None where nothing was generated.
    """

    predictions: Sequence[Any]
    labels: Sequence[Any]
    texts: Sequence[str] | None = None
    references: Sequence[str] | None = None


@dataclass(frozen=True)
class MetricContext:
    """What a metric is made with.

    Attributes:
        arguments: of the train stage, among them `acc_strategy`.
        tokenizer: that of the model, transformers'.
    """

    arguments: TrainArguments
    tokenizer: Any


Metric = Callable[[Predicted], Mapping[str, float]]
"""Takes what was predicted, gives numbers by name; they are logged as `eval_<name>`."""

MetricMaker = Callable[[MetricContext], tuple[Metric, bool]]
"""Gives the metric, and whether it needs generated answers."""

OPTIMIZERS: dict[str, OptimizerFactory] = {}
LOSSES: dict[str, Loss] = {}
METRICS: dict[str, MetricMaker] = {}
"""What plugins have registered, and only that: our own names are in `OURS`."""
REGISTRIES: dict[str, dict[str, Any]] = {"optimizer": OPTIMIZERS, "loss_type": LOSSES, "metric": METRICS}
"""By the parameter that asks for them."""


def register_optimizer(name: str) -> Callable[[T], T]:
    """Makes a factory, see `OptimizerFactory`, known as `--optimizer NAME`.

    Raises:
        ArgumentsError: the name is taken.
    """
    return _registrar("optimizer", name, "an optimizer")


def register_loss(name: str) -> Callable[[T], T]:
    """Makes a function, see `Loss`, known as `--loss_type NAME`.

    Raises:
        ArgumentsError: the name is taken.
    """
    return _registrar("loss_type", name, "a loss")


def register_metric(name: str) -> Callable[[T], T]:
    """Makes a maker, see `MetricMaker`, known as `--metric NAME`.

    Raises:
        ArgumentsError: the name is taken.
    """
    return _registrar("metric", name, "a metric")


def _registrar(flag: str, name: str, what: str) -> Callable[[T], T]:
    registry = REGISTRIES[flag]

    def register(made: T) -> T:
        if name in registry or name in OURS[flag]:
            raise ArgumentsError(f"there is {what} {name!r} already: choose another name")
        if not name:
            raise ArgumentsError(f"{what} needs a name")
        if not callable(made):
            raise ArgumentsError(f"{what} {name!r} is a {type(made).__name__}: give a function")
        registry[name] = made
        return made

    return register


def load_for_training(plugins: Path, tokens: Path) -> None:
    """Executes the plugins of the train stage; those that the tokens came with stay as well.

    Raises:
        ArgumentsError: one of them raises; the message names the file and the line.
    """
    from stages.data.plugins import load_plugins
    from stages.data.stream import PLUGINS

    load_plugins(plugins, beside=[folder for folder in (tokens / "plugins", tokens / PLUGINS) if folder.is_dir()])


def check_plugins(files: Sequence[Path], arguments: TrainArguments) -> None:
    """Executes the user's files, so that a name which none of them registers is said before anything runs.

    Raises:
        ArgumentsError: one of them raises, or does not register what the arguments ask for.
    """
    from stages.data.plugins import load_plugins

    load_plugins(files)
    for flag in arguments.registered():
        check_registered(flag, getattr(arguments, flag))


def check_registered(flag: str, name: str) -> None:
    """Refuses a name that neither we nor the plugins, which have been loaded, know.

    Args:
        flag: without dashes.
        name: its value.

    Raises:
        ArgumentsError: naming the choices.
    """
    choices = [*OURS[flag], *REGISTRIES[flag]]
    if name not in choices:
        raise ArgumentsError(
            f"`--{flag} {name}`: no file of `--custom_register_path` registers it. "
            f"Choose from: {', '.join(choices)}.{closest(name, choices)}".removesuffix(".")
        )


@contextmanager
def blamed(flag: str, name: str) -> Iterator[None]:
    """Around a call of what a plugin has registered: an exception becomes one line with the plugin's file and line.

    Raises:
        ArgumentsError: the call has raised.
    """
    try:
        yield
    except MartletError:
        raise
    except Exception as error:
        text = next(iter(str(error).strip().splitlines()), "")
        what = f"{type(error).__name__}: {text:.200}" if text else type(error).__name__
        raise ArgumentsError(f"`--{flag} {name}`: {_place(error)}{what}") from error


def _place(error: BaseException) -> str:
    """`mine.py line 7: `, the last line of a plugin that an exception went through."""
    from stages.data.plugins import PREFIX

    place, step = "", error.__traceback__
    while step is not None:
        if str(step.tb_frame.f_globals.get("__name__", "")).startswith(PREFIX):
            place = f"{Path(step.tb_frame.f_code.co_filename).name} line {step.tb_lineno}: "
        step = step.tb_next
    return place
