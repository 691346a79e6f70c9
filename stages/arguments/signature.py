"""A flat Python signature for a model of arguments: `signature(SftArguments)`.

Prefect makes a deployment's form and its `-p name=value` from a flow's signature; this one has SWIFT's names, flat.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from stages.arguments.base import Arguments

__all__ = ["MAIN", "docstring", "given", "signature"]

_MAIN = """
model dataset train_type output_dir
num_train_epochs max_steps learning_rate per_device_train_batch_size gradient_accumulation_steps max_length
lora_rank lora_alpha lora_dropout target_modules
val_dataset split_dataset_ratio system truncation_strategy
torch_dtype attn_impl device_map gradient_checkpointing
warmup_steps weight_decay lr_scheduler_type save_steps eval_steps logging_steps seed
ckpt_dir adapters merge_lora quant_method quant_bits group_size
eval_dataset eval_limit max_new_tokens temperature
push_to_hub hub_model_id use_hf model_revision
"""
MAIN = tuple(_MAIN.split())
"""What most runs set: first in the form."""


def signature(model: type[Arguments]) -> inspect.Signature:
    """Keyword-only parameters, the main ones first, each with its type and concrete default."""
    fields = model.model_fields
    names = [name for name in MAIN if name in fields] + [name for name in fields if name not in MAIN]
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=fields[name].rebuild_annotation(),
                default=inspect.Parameter.empty
                if fields[name].is_required()
                else fields[name].get_default(call_default_factory=True),
            )
            for name in names
        ],
    )


def docstring(model: type[Arguments], summary: str) -> str:
    """A docstring whose `Args:` hold the help of each field, for the labels of the form."""
    from stages.arguments.help import descriptions

    lines = [f"    {name}: {' '.join(text.split())}" for name, text in descriptions(model).items()]
    return "\n".join([summary, "", "Args:", *lines])


def given(model: type[Arguments], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that differ from their default: what was given, when all of them are passed."""
    fields = model.model_fields
    return {
        name: value
        for name, value in parameters.items()
        if name not in fields
        or fields[name].is_required()
        or value != fields[name].get_default(call_default_factory=True)
    }
