"""Folds an adapter into its base model, tensor by tensor, so that memory does not grow with the model.

`python -m stages merge --input model=sha256:… --input adapter=output/…/checkpoint-30 --max_shard_size 2GB`
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages.arguments import MergeArguments
from stages.arguments.merge import shard_bytes
from stages.context import Context
from stages.errors import ModelError
from stages.links import link_or_copy
from stages.sources.model_folder import MODEL_FILES
from stages.stage import Input, Inputs, Metrics, Stage

if TYPE_CHECKING:
    from torch import Tensor

    from stages.training.edits import Edit
    from stages.training.merging import AddedTensor, BaseWeights, MergedTensor, MergePlan

__all__ = ["STAGE", "merge"]

TEMPLATE = "chat_template.jinja"
"""How the adapter's rows were written, where that is not how the base model's own template writes."""


def merge(arguments: MergeArguments, inputs: Inputs, out: Path, context: Context) -> Metrics:
    """Writes the merged model as a plain Hugging Face folder.

    Each tensor is read, changed in float32 and written in the data type that it had. Nothing is written before every
    change of the adapter has been found to fit a tensor of the model.

    Args:
        arguments: how the weights are stored.
        inputs: `model`, in floating point, and `adapter`, a PEFT folder.
        out: the model folder.
        context: progress in bytes.

    Raises:
        ModelError: the model is quantized, the adapter is of another model or cannot be merged, a file is damaged.
    """
    from stages.sources.model_folder import check_model_folder, read_json
    from stages.training.adapter import read_adapter
    from stages.training.companions import link_companions
    from stages.training.cores import share_cores
    from stages.training.merging import BaseWeights, plan_merge

    share_cores()
    check_model_folder(inputs["model"])
    base = BaseWeights(inputs["model"])
    edits = read_adapter(inputs["adapter"], base)
    classifies = read_json(inputs["adapter"] / "adapter_config.json").get("task_type") == "SEQ_CLS"
    plan = plan_merge(base, edits, classifies=classifies)
    context.logger.info("merge: %d of %d tensors change", len(edits), len(plan.tensors))
    if plan.unties:
        context.logger.info("merge: the output head gets weights of its own; so far it shared the input embedding's")
        _write_config(base, out)
    if classifies:
        _write_class_config(inputs["model"], base, edits, out)
    if (template := inputs["adapter"] / TEMPLATE).is_file():
        link_or_copy(template, out / TEMPLATE)
    link_companions(inputs["model"], out)
    write = _write_safetensors if arguments.safe_serialization else _write_pickles
    write(base, plan, out, shard_bytes(arguments.max_shard_size), context)
    weights = [path for path in out.iterdir() if path.suffix in (".safetensors", ".bin")]
    return {
        "num_tensors": len(plan.tensors),
        "num_merged_tensors": len(edits),
        "num_shards": len(weights),
        "weights_bytes": sum(path.stat().st_size for path in weights),
    }


def _write_config(base: BaseWeights, out: Path) -> None:
    config = base.config | {"tie_word_embeddings": False}
    if isinstance(config.get("text_config"), dict):
        config["text_config"] = config["text_config"] | {"tie_word_embeddings": False}
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_class_config(model: Path, base: BaseWeights, edits: Sequence[Edit], out: Path) -> None:
    from stages.training.classifier import HEADS, classifier_config

    heads = [edit.shape() for edit in edits if edit.name in [f"{head}.weight" for head in HEADS]]
    if not heads:
        raise ModelError("the adapter is of a classifier, and has no head (score.weight): it is incomplete")
    config = classifier_config(model, base.config, num_labels=heads[0][0])
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_safetensors(base: BaseWeights, plan: MergePlan, out: Path, limit: int, context: Context) -> None:
    """Streams: one merged tensor is in memory at a time."""
    from stages.sources import safetensors_writer as writer

    types = {code: (name, width) for name, (code, width) in writer.CODES.items()}

    def described(tensor: MergedTensor | AddedTensor) -> writer.Tensor:
        code, shape = tensor.stored(base)
        return writer.Tensor(tensor.name, types[code][0], shape, lambda: _bytes(tensor.make(base)))

    for name, stored in base.tensors.items():
        if stored.code not in types:
            raise ModelError(f"the model's {name} is of type {stored.code}, which merge cannot write")
    # Wide types first: each tensor then starts at a multiple of its own width, as readers that map files want it.
    ordered = sorted(plan.tensors, key=lambda tensor: -types[tensor.stored(base)[0]][1])
    progress = context.reporter.progress
    writer.write_safetensors([described(tensor) for tensor in ordered], out, shard_bytes=limit, progress=progress)


def _bytes(tensor: Tensor) -> Iterator[memoryview]:
    import torch

    if tensor.numel():
        yield tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write_pickles(base: BaseWeights, plan: MergePlan, out: Path, limit: int, context: Context) -> None:
    """PyTorch's old format takes the whole model in memory; transformers 5 no longer writes it."""
    from huggingface_hub import save_torch_state_dict

    context.logger.warning("merge: weights become pickles, which can run code when opened")
    tensors = {tensor.name: tensor.make(base).contiguous() for tensor in plan.tensors}
    save_torch_state_dict(tensors, out, max_shard_size=limit, safe_serialization=False)


STAGE = Stage(
    name="merge",
    version=1,
    arguments=MergeArguments,
    inputs={
        "model": Input(kinds=("model",), reads=MODEL_FILES, help="the model that the adapter was trained on"),
        "adapter": Input(
            kinds=("adapter",),
            reads=("adapter_config.json", "adapter_model.safetensors", "reft_config.json", TEMPLATE),
            help="a PEFT folder: adapter_config.json and adapter_model.safetensors",
        ),
    },
    output="model",
    function=merge,
    libraries=("torch",),
)
