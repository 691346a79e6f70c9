"""What SWIFT has and Martlet does not act upon yet: refused, never ignored. Later work empties this list.

`refuse_unsupported({"use_galore": True}, "sft")` raises `--use_galore is not supported yet`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["UNSUPPORTED", "UNSUPPORTED_COMMANDS", "Unsupported", "is_unsupported", "refuse_unsupported"]


class Unsupported(NamedTuple):
    """Which uses of a parameter are refused.

    Attributes:
        values: a regular expression for the values concerned; empty means every value but the default.
        only: the stages and commands concerned; empty means all.
    """

    values: str = ""
    only: tuple[str, ...] = ()


_ALL = Unsupported()
# The parameters that these commands alone have are refused with the command.
UNSUPPORTED_COMMANDS = ("pt", "rlhf", "infer", "deploy", "eval")
_NO_GENERATION = Unsupported(only=("sft", "export"))
_ON_LOAD = Unsupported(only=("sft",))

_NAMES_ALWAYS = """
model_type rope_scaling local_repo_path
streaming model_name model_author custom_register_path custom_dataset_info
template max_pixels tools_prompt loss_scale sequence_parallel_size use_chat_template template_backend
stream stop_words
hqq_axis
fourier_n_frequency fourier_scaling boft_block_size boft_block_num boft_dropout
vera_rank vera_projection_prng_key vera_dropout vera_d_initial
lorap_lr_ratio
use_galore galore_target_modules galore_rank galore_update_proj_gap galore_scale galore_proj_type
galore_optim_per_parameter galore_with_embedding galore_quantization galore_proj_quant galore_proj_bits
galore_proj_group_size galore_cos_threshold galore_gamma_proj galore_queue_size
lisa_activated_layers lisa_step_interval
llamapro_num_new_blocks llamapro_num_groups
adalora_target_r adalora_init_r adalora_tinit adalora_tfinal adalora_deltaT adalora_beta1 adalora_beta2
adalora_orth_reg_weight
reft_layers reft_rank reft_intervention_type reft_args
use_liger model_layer_cls_name metric_warmup_step fsdp_num acc_steps
loss_type num_labels packing acc_strategy optimizer metric predict_with_generate
deepspeed fsdp fsdp_config parallelism_config use_liger_kernel liger_kernel_config
hub_token hub_strategy hub_always_push hub_revision
sortish_sampler generation_max_length generation_num_beams generation_config
"""

UNSUPPORTED: dict[str, Unsupported] = {
    **dict.fromkeys(_NAMES_ALWAYS.split(), _ALL),
    "attn_impl": Unsupported("flash_attn"),
    "train_type": Unsupported("(?!(lora|full)$).*"),
    "tuner_backend": Unsupported("unsloth"),
    "init_lora_weights": Unsupported("pissa.*"),
    "lazy_tokenize": Unsupported("True"),
    "max_new_tokens": _NO_GENERATION,
    "temperature": _NO_GENERATION,
    "top_k": _NO_GENERATION,
    "top_p": _NO_GENERATION,
    "repetition_penalty": _NO_GENERATION,
    "num_beams": _NO_GENERATION,
    "quant_method": Unsupported(".*", only=("sft",)),
    "quant_bits": _ON_LOAD,
    "bnb_4bit_compute_dtype": _ON_LOAD,
    "bnb_4bit_quant_type": _ON_LOAD,
    "bnb_4bit_use_double_quant": _ON_LOAD,
    "bnb_4bit_quant_storage": _ON_LOAD,
    "push_to_hub": _ON_LOAD,
    "hub_model_id": _ON_LOAD,
    "hub_private_repo": _ON_LOAD,
    "eval_dataset": Unsupported("(?!general_(qa|mcq):).*"),
}


def is_unsupported(name: str, value: object, scope: str) -> bool:
    """Whether `scope` (a stage or command) does not act upon `name` set to `value` yet."""
    rule = UNSUPPORTED.get(name)
    if rule is None or scope in UNSUPPORTED_COMMANDS or (rule.only and scope not in rule.only):
        return False
    values = value if isinstance(value, list) else [value]
    return not rule.values or any(re.fullmatch(rule.values, str(one)) for one in values)


def refuse_unsupported(given: Mapping[str, object], scope: str) -> None:
    """Refuses what differs from its default and is not acted upon yet.

    Raises:
        ValueError: naming the flag, and the value where other values work.
    """
    for name, value in given.items():
        if is_unsupported(name, value, scope):
            shown = f" {value}" if UNSUPPORTED[name].values and not isinstance(value, list) else ""
            raise ValueError(f"--{name}{shown} is not supported yet")
