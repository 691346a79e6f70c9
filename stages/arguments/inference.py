"""SWIFT's inference parameters: which checkpoint, which engine, where answers go."""

from typing import ClassVar, Literal

from stages.arguments.base import Arguments, Strings, option

__all__ = ["CheckpointArguments", "InferenceArguments"]


class CheckpointArguments(Arguments):
    """What was trained before."""

    GROUP: ClassVar[str] = "Inference Parameters"

    ckpt_dir: str | None = option(None)
    """Folder of a checkpoint: an adapter, whose model it knows, or a whole model."""
    adapters: Strings = option([])
    """Folders of adapters, with the model they belong to in model."""


class InferenceArguments(CheckpointArguments):
    """How answers are made, and where they go."""

    GROUP: ClassVar[str] = "Inference Parameters"

    infer_backend: Literal["pt", "vllm", "lmdeploy"] = option("pt")
    """The engine: transformers (pt), vLLM or LMDeploy."""
    result_path: str | None = option(None)
    """A .jsonl file for the answers; infer_result/<time>.jsonl beside the model if left out."""
    writer_buffer_size: int = option(65536, ge=0)
    """Bytes held back before answers are written."""
    max_batch_size: int = option(1, ge=1)
    """Prompts the pt engine takes at a time."""
    val_dataset_sample: int | None = option(None, ge=1)
    """Rows drawn from the validation rows; all if left out."""
