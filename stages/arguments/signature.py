"""A flat Python signature for a model of arguments: `signature(SftArguments)`.

A flow is called by it: every parameter under SWIFT's name. The form of a deployment shows fewer (see `form.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from stages.arguments.base import Arguments

__all__ = ["MAIN", "given", "signature"]

_MAIN = """
model dataset use_hf model_revision ckpt_dir adapters
retrain_from compare_by former_model
train_type lora_rank lora_alpha lora_dropout target_modules
num_train_epochs max_steps learning_rate per_device_train_batch_size gradient_accumulation_steps max_length
val_dataset split_dataset_ratio system truncation_strategy
lr_scheduler_type warmup_steps weight_decay seed
merge_lora quant_method quant_bits group_size
torch_dtype attn_impl device_map gradient_checkpointing
save_steps eval_steps logging_steps
eval_dataset eval_limit max_new_tokens temperature
push_to_hub hub_model_id output_dir
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
