"""SWIFT's vLLM parameters."""

from typing import ClassVar

from stages.arguments.base import Arguments, JsonObject, option

__all__ = ["VllmArguments"]


class VllmArguments(Arguments):
    """The vLLM engine."""

    GROUP: ClassVar[str] = "vLLM Parameters"

    gpu_memory_utilization: float = option(0.9, gt=0, le=1)
    """Share of GPU memory that is used."""
    tensor_parallel_size: int = option(1, ge=1)
    """GPUs that share each layer."""
    pipeline_parallel_size: int = option(1, ge=1)
    """GPUs, or groups of them, that share out the layers."""
    max_num_seqs: int = option(256, ge=1)
    """Conversations in one batch at most."""
    max_model_len: int | None = option(None, ge=1)
    """Tokens of a conversation at most; as many as the model takes if left out."""
    disable_custom_all_reduce: bool = option(True)
    """Use NCCL instead of vLLM's own all-reduce kernel."""
    enforce_eager: bool = option(False)
    """Record no CUDA graphs: less memory, slower."""
    limit_mm_per_prompt: JsonObject | None = option(None)
    """Images, videos and the like in one prompt at most, as a JSON object: {"image": 10}."""
    vllm_max_lora_rank: int = option(16, ge=1)
    """Largest rank of an adapter that is served."""
