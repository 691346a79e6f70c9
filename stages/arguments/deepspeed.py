"""DeepSpeed's settings, also by the names that SWIFT has for some: `--deepspeed zero2`.

What is "auto" there, transformers settles: batch sizes, clipping, data types, sizes of buffers.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, JsonValue

from stages.arguments.base import load_json

__all__ = ["DeepSpeed", "zero"]

NAMES = {
    "zero0": (0, False),
    "zero1": (1, False),
    "zero2": (2, False),
    "zero3": (3, False),
    "zero2_offload": (2, True),
    "zero3_offload": (3, True),
}
"""The stage of ZeRO (arXiv 1910.02054), and whether the processor's memory is used too."""


def zero(stage: int, *, offload: bool = False) -> dict[str, Any]:
    """Settings as SWIFT's files have them.

    Args:
        stage: what the GPUs share: 0 nothing, 1 the optimizer's state, 2 gradients too, 3 weights too.
        offload: whether the optimizer's state, and in stage 3 the weights, wait in the processor's memory.
    """
    place = {"device": "cpu" if offload else "none", "pin_memory": True}
    shared: dict[str, Any] = {"stage": stage, "overlap_comm": False, "contiguous_gradients": True}
    if stage > 0:
        shared["offload_optimizer"] = place
    if stage == 3:
        shared |= {
            "offload_param": place,
            "sub_group_size": 1e9,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_max_live_parameters": 1e9,
            "stage3_max_reuse_distance": 1e9,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    else:
        shared |= {
            "allgather_partitions": True,
            "allgather_bucket_size": 2e8,
            "reduce_scatter": True,
            "reduce_bucket_size": 2e8,
        }
    loss_scale = {"loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16}
    return {
        "fp16": {"enabled": "auto", **loss_scale, "hysteresis": 2, "min_loss_scale": 1},
        "bf16": {"enabled": "auto"},
        "zero_optimization": shared,
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "steps_per_print": 2000,
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "wall_clock_breakdown": False,
    }


def _read(value: object) -> object:
    """A name, else JSON text, else the path of a JSON file."""
    if not isinstance(value, str):
        return value
    if value in NAMES:
        stage, offload = NAMES[value]
        return zero(stage, offload=offload)
    try:
        return load_json(value)
    except ValueError as error:
        raise ValueError(f"{error}, and none of {', '.join(NAMES)}") from None


DeepSpeed = Annotated[dict[str, JsonValue], BeforeValidator(_read, json_schema_input_type=dict[str, Any] | str)]
"""Settings: by name, as a JSON object, as JSON text, or as the path of a JSON file, whose content then counts."""
