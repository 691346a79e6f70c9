"""Optimizer and scheduler, made once for a model of four weights: what cannot be made is said before the real model is
loaded. `rehearse(settings, steps)`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stages.errors import ArgumentsError, MissingPackage

if TYPE_CHECKING:
    from transformers import Seq2SeqTrainingArguments

__all__ = ["rehearse"]

PACKAGES = {
    "lomo": "lomo-optim",
    "adalomo": "lomo-optim",
    "galore": "galore-torch",
    "apollo": "apollo-torch",
    "schedule_free": "schedulefree",
    "grokadamw": "grokadamw",
    "stable_adamw": "torch-optimi",
    "adamw_anyprecision": "torchdistx",
    "adamw_torch_xla": "torch_xla",
    "adamw_torch_npu": "torch_npu",
    "bnb": "bitsandbytes",
    "8bit": "bitsandbytes",
    "paged": "bitsandbytes",
    "lion": "bitsandbytes",
    "ademamix": "bitsandbytes",
    "4bit": "torchao",
}
"""What an optimizer comes from, by a part of its name."""


def rehearse(settings: Seq2SeqTrainingArguments, steps: int, *, num_rows: int = 0, own_optimizer: bool = False) -> None:
    """Tries what the Trainer does once the weights are there.

    Args:
        settings: of the Trainer.
        steps: optimizer steps of the run.
        num_rows: that are trained on; 0 where nobody knows.
        own_optimizer: whether the optimizer is made by us, not by the Trainer.

    Raises:
        MissingPackage: the optimizer's package is not here.
        ArgumentsError: a setting that optimizer or scheduler does not take.
    """
    import torch

    if settings.dataloader_drop_last and 0 < num_rows < settings.train_batch_size:
        raise ArgumentsError(
            f"`--dataloader_drop_last` drops the only batch: there are {num_rows} rows, and "
            f"`--per_device_train_batch_size` is {settings.per_device_train_batch_size}. Lower it, or drop the flag"
        )
    backend = settings.torch_compile_backend
    if backend and backend not in (known := torch.compiler.list_backends()):
        raise ArgumentsError(f"`--torch_compile_backend {backend}`: choose from {', '.join(known)}")
    model = torch.nn.Linear(2, 2)
    if not own_optimizer:
        _try_optimizer(settings, model)
    _try_scheduler(settings, torch.optim.SGD(model.parameters(), lr=1.0), steps)


def _try_optimizer(settings: Seq2SeqTrainingArguments, model: Any) -> None:
    from transformers import Trainer

    name = getattr(settings.optim, "value", settings.optim)
    if settings.optim_target_modules:  # which are the real model's
        settings = replace(settings, optim_target_modules=[".*"])
    try:
        _, kwargs = Trainer.get_optimizer_cls_and_kwargs(settings, model)
        without = kwargs
        if settings.optim_args:
            _, without = Trainer.get_optimizer_cls_and_kwargs(replace(settings, optim_args=None), model)
    except (ImportError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, ImportError) or re.search(r"(?i)install|import", reason):
            package = next((package for part, package in PACKAGES.items() if part in name), name)
            raise MissingPackage(f"`--optim {name}` needs the package {package}: pip install {package}") from None
        given = f" with `--optim_args {settings.optim_args}`" if settings.optim_args else ""
        raise ArgumentsError(f"`--optim {name}`{given}: {reason}") from None
    if settings.optim_args and kwargs == without:
        raise ArgumentsError(f"`--optim_args {settings.optim_args}`: `--optim {name}` takes none of it: drop it")


def _try_scheduler(settings: Seq2SeqTrainingArguments, optimizer: Any, steps: int) -> None:
    from transformers import get_scheduler

    given = dict(settings.lr_scheduler_kwargs or {})
    name = getattr(settings.lr_scheduler_type, "value", settings.lr_scheduler_type)
    try:
        get_scheduler(name, optimizer, settings.get_warmup_steps(steps), steps, scheduler_specific_kwargs=given)
    except (ValueError, TypeError) as error:
        reason = re.sub(r"^\w+\(\) ", "", " ".join(str(error).split()))
        raise ArgumentsError(f"`--lr_scheduler_type {name}` with `--lr_scheduler_kwargs {given}`: {reason}") from None
