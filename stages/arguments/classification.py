"""Training of a classifier instead of a model that writes: `TrainArguments(num_labels=3)`."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

from pydantic import model_validator

from stages.arguments.base import Arguments, option

__all__ = ["ClassifierArguments"]

# What a classifier cannot have: the parameter, which of its values, and why.
_EXCLUDED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("packing", bool, "puts rows end to end, and a class is read off the end of each row"),
    ("loss_scale", lambda value: value != "default", "weighs the tokens of answers, and none is learnt"),
    ("loss_type", bool, "is a loss of answers, and a class has cross entropy"),
    ("metric", lambda value: value not in (None, "acc"), "measures answers, and of classes accuracy is measured"),
    ("acc_strategy", lambda value: value != "token", "is about answers, and a row has one class"),
    ("predict_with_generate", bool, "writes answers, and a classifier writes nothing"),
    ("sequence_parallel_size", lambda value: value > 1, "cuts rows, and a class is read off a whole one"),
    (
        "train_type",
        lambda value: value in ("longlora", "llamapro", "adapter", "reft"),
        "trains models that write; lora, full, adalora, vera, boft and fourierft train a classifier",
    ),
    ("lisa_activated_layers", bool, "trains models that write"),
    ("tuner_backend", lambda value: value == "unsloth", "trains models that write"),
    *(
        (name, bool, "is for models that write: a classifier is trained, and stays, in floating point")
        for name in ("quant_method", "quant_bits", "load_quant_method", "load_quant_bits")
    ),
    ("eval_dataset", bool, "asks for answers; give `--val_dataset`, rows with labels"),
)


class ClassifierArguments(Arguments):
    """Rows have a class each, which is learnt instead of answers."""

    GROUP: ClassVar[str] = "Pre-training and Fine-tuning Parameters"

    num_labels: int | None = option(None, ge=1)
    """Number of classes, for training a classifier."""

    @model_validator(mode="after")
    def _check_classifier(self) -> Self:
        if self.num_labels is None:
            return self
        if self.num_labels == 1:
            raise ValueError(
                "`--num_labels 1` would be a regression, and a row's label is the number of a class: give 2 or more"
            )
        for name, excluded, why in _EXCLUDED:
            value = getattr(self, name, None)
            if value is not None and excluded(value):
                shown = "" if value is True or isinstance(value, list) else f" {value}"
                raise ValueError(f"`--{name}{shown}` {why}: drop it, or `--num_labels {self.num_labels}`")
        return self
