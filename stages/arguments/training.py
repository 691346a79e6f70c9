"""SWIFT's training parameters: transformers' own whose defaults SWIFT changes, and those that only SWIFT has."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from stages.arguments.base import Arguments, JsonObject, one_or_many, option
from stages.arguments.classification import ClassifierArguments
from stages.arguments.message import closest, shorten
from stages.arguments.trainer import TrainerArguments

__all__ = [
    "CheckModelArguments",
    "EvalBatchArguments",
    "LossArguments",
    "OutputArguments",
    "OutputDirArguments",
    "PreflightArguments",
    "ResumeArguments",
    "TokenizeModeArguments",
    "TrainerDefaultsArguments",
]

_GROUP = "Pre-training and Fine-tuning Parameters"

Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "greedy",
]


Reporter = Literal[
    "tensorboard",
    "wandb",
    "swanlab",
    "azure_ml",
    "clearml",
    "codecarbon",
    "comet_ml",
    "dagshub",
    "dvclive",
    "flyte",
    "kubeflow",
    "mlflow",
    "neptune",
    "trackio",
    "all",
    "none",
]
Reporters = Annotated[list[Reporter], BeforeValidator(one_or_many, json_schema_input_type=list[Reporter] | Reporter)]


class OutputDirArguments(Arguments):
    """Where results are put."""

    GROUP: ClassVar[str] = _GROUP

    output_dir: str | None = option(None, in_key=False)
    """Folder for results; output/<model> for training, and beside the checkpoint for export, if left out."""


class OutputArguments(OutputDirArguments):
    """Where a training run's results are put."""

    GROUP: ClassVar[str] = _GROUP

    add_version: bool = option(True, in_key=False)
    """Put each run into a folder of its own, v<N>-<time>, inside output_dir."""


class CheckModelArguments(Arguments):
    """Whether a model's files are looked at first."""

    GROUP: ClassVar[str] = _GROUP

    check_model: bool = option(True, in_key=False)
    """Check the files of the model for damage before they are used."""


class PreflightArguments(Arguments):
    """Whether a run is tried that does not seem to fit; not SWIFT's."""

    GROUP: ClassVar[str] = _GROUP

    ignore_preflight: bool = option(False, in_key=False)
    """Train even where memory or disk seem too small for it."""


class EvalBatchArguments(Arguments):
    """How many rows are measured at a time."""

    GROUP: ClassVar[str] = _GROUP

    per_device_eval_batch_size: int = option(1, ge=1)
    """Rows a device takes at a time in validation."""


class TrainerDefaultsArguments(EvalBatchArguments, TrainerArguments):
    """All that transformers' trainer takes; declared here are the parameters whose defaults SWIFT changes."""

    GROUP: ClassVar[str] = _GROUP
    ALIASES: ClassVar[Mapping[str, str]] = {
        "activation_checkpointing": "gradient_checkpointing",
        "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
        "evaluation_strategy": "eval_strategy",
    }

    learning_rate: float | None = option(None, gt=0)
    """Peak learning rate; 1e-5 for train_type full and 1e-4 otherwise if left out."""
    per_device_train_batch_size: int = option(1, ge=1)
    """Rows a device takes at a time in training."""
    weight_decay: float = option(0.1, ge=0)
    """How strongly the optimizer pulls weights towards zero."""
    lr_scheduler_type: Scheduler = option("cosine")
    """How the learning rate changes over the run."""
    lr_scheduler_kwargs: JsonObject | None = option(None)
    """Further settings of the scheduler, as a JSON object or file."""
    gradient_checkpointing: bool = option(True)
    """Recompute activations in the backward pass, which saves memory and costs time."""
    gradient_checkpointing_kwargs: JsonObject | None = option(None)
    """Further settings of gradient checkpointing, as a JSON object."""
    eval_strategy: Literal["no", "steps", "epoch"] | None = option(None)
    """When the model is validated; as save_strategy if left out. With no, nothing is held out."""
    logging_steps: float = option(5.0, gt=0, in_key=False)
    """Steps between two log lines; below 1 a share of all steps."""
    logging_first_step: bool = option(True, in_key=False)
    """Log the first step too."""
    report_to: Reporters = option(["tensorboard"], in_key=False)
    """Where logs go besides the file."""
    remove_unused_columns: bool = option(False)
    """Drop columns that the model's forward does not take."""

    @model_validator(mode="after")
    def _settle_training(self) -> Self:
        if self.learning_rate is None:
            full = getattr(self, "train_type", None) == "full"
            self._resolve(learning_rate=1e-5 if full else 1e-4)
        if self.eval_strategy is None:
            self._resolve(eval_strategy=self.save_strategy if self.save_strategy in ("no", "epoch") else "steps")
        if self.eval_steps is None:
            self._resolve(eval_steps=self.save_steps)
        return self

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        for name in ("warmup_steps", "logging_steps", "save_steps", "eval_steps"):
            value = getattr(self, name)
            if value > 1 and value != int(value):
                raise ValueError(f"--{name} {value:g}: above 1 it counts steps and must be a whole number")
        return self

    @model_validator(mode="after")
    def _check_best_model(self) -> Self:
        if self.load_best_model_at_end and self.save_strategy not in ("best", self.eval_strategy):
            raise ValueError(
                f"`--load_best_model_at_end` needs a checkpoint at each validation: set `--eval_strategy "
                f"{self.eval_strategy}` and `--save_strategy {self.save_strategy}` to the same"
            )
        if self.save_strategy == "best" and self.metric_for_best_model is None:
            raise ValueError("`--save_strategy best` needs `--metric_for_best_model`: give loss, or another metric")
        if self.fp16 and self.bf16:
            raise ValueError("`--fp16` and `--bf16` are two kinds of mixed precision: give one of them")
        return self


class ResumeArguments(Arguments):
    """Going on from an earlier run."""

    GROUP: ClassVar[str] = _GROUP

    resume_from_checkpoint: str | None = option(None)
    """Folder of a checkpoint to go on from."""
    resume_only_model: bool = option(False)
    """Take only the weights from it: optimizer, step and order of rows start anew."""

    @model_validator(mode="after")
    def _check_resume(self) -> Self:
        if self.resume_only_model and self.resume_from_checkpoint is None:
            raise ValueError("`--resume_only_model` needs `--resume_from_checkpoint`: give the checkpoint's folder")
        return self


class TokenizeModeArguments(ClassifierArguments):
    """When rows become tokens, and how they are put together."""

    GROUP: ClassVar[str] = _GROUP

    packing: bool = option(False)
    """Put short rows together up to max_length; they do not see each other."""
    lazy_tokenize: bool | None = option(None)
    """Tokenize a row when it is needed; if left out, only for multimodal models."""

    @model_validator(mode="after")
    def _check_tokenize_mode(self) -> Self:
        if self.packing and self.lazy_tokenize:
            raise ValueError("`--packing` needs every row's length, `--lazy_tokenize` knows none: drop one of them")
        return self


def _sentence(value: object) -> object:
    """Later releases of SWIFT say seq."""
    return "sentence" if value == "seq" else value


OURS = {
    "optimizer": ("default", "galore", "lorap"),
    "loss_type": ("cross_entropy", "loss_scale"),
    "metric": ("acc", "nlg"),
}
"""The names that need no plugin."""


class LossArguments(ClassifierArguments):
    """What is optimized, how, and what is measured."""

    GROUP: ClassVar[str] = _GROUP

    loss_type: str | None = option(None)
    """The loss: cross_entropy, loss_scale, or a registered one; cross entropy if left out."""
    acc_strategy: Annotated[Literal["token", "sentence"], BeforeValidator(_sentence)] = option("token")
    """Whether accuracy counts tokens or whole answers."""
    optimizer: str | None = option(None)
    """The optimizer: default, galore, lorap, or a registered one; lorap_lr_ratio and use_galore go before it."""
    metric: str | None = option(None)
    """What validation measures: acc, nlg, or a registered metric."""

    @model_validator(mode="before")
    @classmethod
    def _galore_by_name(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("optimizer") == "galore" and "use_galore" in cls.model_fields:
            return {"use_galore": True, **values}
        return values

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for name in self.registered() if self.NAME != "rlhf" else ():  # whose losses are others
            if not getattr(self, "custom_register_path", None):
                value = getattr(self, name)
                raise ValueError(
                    f"--{name} {shorten(value)}: choose from {', '.join(OURS[name])}, or add the file that "
                    f"registers it, `--custom_register_path`.{closest(value, OURS[name])}".removesuffix(".")
                )
        if self.optimizer == "lorap" and getattr(self, "lorap_lr_ratio", None) is None:
            raise ValueError("`--optimizer lorap` needs the ratio of its two rates: add `--lorap_lr_ratio 16`")
        if self.optimizer == "galore" and not getattr(self, "use_galore", False):
            raise ValueError("`--optimizer galore` and `--use_galore false` contradict each other: drop one of them")
        if self.optimizer in ("lorap", "galore") or (self.optimizer == "default" and not self._goes_before()):
            self._resolve(optimizer=None)
        return self

    def _goes_before(self) -> bool:
        return getattr(self, "lorap_lr_ratio", None) is not None or getattr(self, "use_galore", False)

    def registered(self) -> list[str]:
        """The parameters whose value is a name that only a plugin can know, and that is looked up there."""
        found = [name for name, ours in OURS.items() if getattr(self, name) not in (None, *ours)]
        return [name for name in found if name != "optimizer" or not self._goes_before()]
