"""Our arguments as transformers' own: `trainer_settings(arguments, precision, folder, validates=True)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ArgumentsError, MissingPackage
from stages.training.best import best_by
from stages.training.parallel import num_shares, parallel_settings

if TYPE_CHECKING:
    from transformers import Seq2SeqTrainingArguments

    from stages.arguments import TrainArguments
    from stages.training.precision import Precision

__all__ = ["count_steps", "trainer_settings", "writes_tensorboard"]

OLD_NAMES = ("gradient_checkpointing", "gradient_checkpointing_kwargs")


def trainer_settings(
    arguments: TrainArguments, precision: Precision, folder: Path, *, validates: bool, streams: bool = False
) -> Seq2SeqTrainingArguments:
    """Everything that transformers knows, passed through; on top what this machine and this house decide.

    Args:
        arguments: what the user gave.
        precision: device and data types.
        folder: where checkpoints are written.
        validates: whether there are rows to validate on.
        streams: whether rows have no numbers.

    Raises:
        ArgumentsError: transformers refuses a combination, or one needs a validation that does not take place.
        MissingPackage: a logger that is not installed.
    """
    from transformers import Seq2SeqTrainingArguments

    _check_validation(arguments, validates)
    best = best_by(arguments)
    known = {field.name for field in fields(Seq2SeqTrainingArguments) if field.init}
    values = {name: getattr(arguments, name) for name in type(arguments).model_fields if name in known}
    for name in OLD_NAMES:
        values.pop(name, None)
    values |= {
        "output_dir": str(folder),
        "activation_checkpointing": arguments.gradient_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False} | (arguments.gradient_checkpointing_kwargs or {}),
        "use_cpu": precision.on_cpu,
        "bf16": precision.mixed == "bf16",
        "fp16": precision.mixed == "fp16",
        "eval_strategy": arguments.eval_strategy if validates else "no",
        "prediction_loss_only": True,
        "predict_with_generate": False,  # `measures.py` does
        "report_to": _other_loggers(arguments.report_to),
        "disable_tqdm": True,
        # Checkpoints are counted, removed and made lighter by `checkpoints.py`; while a run lasts it needs them whole.
        "save_total_limit": None,
        "save_only_model": False,
        "enable_jit_checkpoint": False,
        "resume_from_checkpoint": None,
        "push_to_hub": False,
        "remove_unused_columns": False,  # weights and places are no arguments of a model
    }
    if best is not None:
        values |= {"metric_for_best_model": best.name, "greater_is_better": best.greater_is_better}
    if streams:  # it goes on from its own place; batches of several lengths cannot be dealt out by one process
        values["ignore_data_skip"] = True
        values["accelerator_config"] = {"dispatch_batches": False} | (arguments.accelerator_config or {})
    values |= parallel_settings(arguments)
    try:
        settings = Seq2SeqTrainingArguments(**values)
    except (ValueError, TypeError, ImportError) as error:
        raise ArgumentsError(" ".join(str(error).split())) from None
    settings._n_gpu = min(settings.n_gpu, 1)  # several GPUs in one process would be DataParallel, slow and inexact
    return settings


def count_steps(settings: Seq2SeqTrainingArguments, num_rows: int) -> int:
    """Optimizer steps of the whole run, as the Trainer counts them."""
    if settings.max_steps > 0:
        return int(settings.max_steps)
    batches, rest = divmod(num_rows, settings.train_batch_size * num_shares(settings))
    batches += bool(rest and not settings.dataloader_drop_last)
    steps: int = max(-(-batches // settings.gradient_accumulation_steps), 1)
    total: int = ceil(settings.num_train_epochs * steps)
    return total


def writes_tensorboard(arguments: TrainArguments) -> bool:
    """Whether `report_to` asks for TensorBoard, which we write ourselves: transformers 5 takes no folder for it."""
    return bool({"tensorboard", "all"} & set(arguments.report_to))


def _other_loggers(names: Sequence[str]) -> list[str]:
    others = [name for name in names if name not in ("tensorboard", "none", "all")]
    for name in others:
        if find_spec(name.replace("-", "_")) is None:
            raise MissingPackage(f"`--report_to {name}` needs the package {name}: pip install {name}")
    return others


def _check_validation(arguments: TrainArguments, validates: bool) -> None:
    if validates:
        return
    needs: dict[str, Any] = {
        "--load_best_model_at_end": arguments.load_best_model_at_end,
        "--save_strategy best": arguments.save_strategy == "best",
        f"--lr_scheduler_type {arguments.lr_scheduler_type}": arguments.lr_scheduler_type
        in ("reduce_lr_on_plateau", "greedy"),
        "--eval_on_start": arguments.eval_on_start,
        "--metric_for_best_model": arguments.metric_for_best_model is not None,
        "--early_stop_interval": arguments.early_stop_interval is not None,
        "--predict_with_generate": arguments.predict_with_generate,
    }
    for flag, given in needs.items():
        if given:
            raise ArgumentsError(
                f"`{flag}` needs a validation, and none takes place: give `--val_dataset` or "
                "`--split_dataset_ratio 0.01`, and an `--eval_strategy` other than no"
            )
