"""GPTQ (arXiv 2210.17323) through GPTQModel: `quantize_gptq(arguments, model, tokens, dtype, out, context)`.

GPTQModel changes transformers, safetensors and the environment of the process that imports it, and prints without end:
it works in a process of its own, whose words go to an attachment.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.processes import run_child
from stages.quantization.folder import assemble

if TYPE_CHECKING:
    from stages.arguments import QuantizeArguments
    from stages.context import Context

__all__ = ["quantize_gptq"]

# What GPTQModel notes beside the settings that made the weights is about the machine: temporary folders, GPUs, threads.
META = ("quantizer", "uri", "damp_percent", "damp_auto_increment", "true_sequential", "act_group_aware", "mse")


def quantize_gptq(
    arguments: QuantizeArguments, model: Path, tokens: Path, dtype: str, out: Path, context: Context
) -> int:
    """Quantizes every linear layer of the decoder, one decoder layer after the other.

    Args:
        arguments: `quant_bits`, `group_size`, `quant_n_samples`, `quant_seqlen`, `quant_batch_size`, `data_seed`.
        model: the float model.
        tokens: Parquet of tokenized rows.
        dtype: of what stays in floating point.
        out: the artifact.
        context: progress by layers; the log and the loss of each layer are among the attachments.

    Returns:
        Tokens that it was calibrated on.

    Raises:
        ArgumentsError, DataError, ModelError: before any weight is loaded, if settings, rows and model do not fit.
        StageFailed: GPTQModel broke down.
        Interrupted: the run was told to stop.
    """
    import numpy as np

    from stages.arguments.merge import shard_bytes
    from stages.quantization.calibration import calibration_blocks
    from stages.quantization.layers import check_layers
    from stages.serving.loading import check_device
    from stages.training.rows import read_rows

    block = arguments.quant_seqlen
    vocabulary = check_layers(model, group_size=arguments.group_size, block=block)
    rows = read_rows(tokens, vocabulary)
    blocks = calibration_blocks(rows, num_samples=arguments.quant_n_samples, block=block, seed=arguments.data_seed)
    context.logger.info("quantize: calibrating on %d blocks of %d tokens", *blocks.shape)
    work = _emptied(context.scratch.absolute() / "gptq")
    np.save(work / "blocks.npy", blocks)
    job: dict[str, Any] = {
        "model": str(model.absolute()),
        "blocks": str(work / "blocks.npy"),
        "offload": str(work / "offload"),
        "out": str(work / "model"),
        "bits": arguments.quant_bits,
        "group_size": arguments.group_size,
        "batch_size": arguments.quant_batch_size,
        "dtype": dtype,
        "device_map": check_device(arguments.device_map),
        "shard_bytes": shard_bytes(arguments.max_shard_size),
    }
    (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
    context.reporter.progress(0, 1, f"GPTQ in {arguments.quant_bits} bits: loading")
    run_child(
        sys.executable,
        "stages.quantization.gptq_worker",
        [str(work / "job.json")],
        log=context.attachments / "gptqmodel.log",
        title="GPTQModel",
        on_event=lambda event: context.reporter.progress(event["done"], event["total"], event["text"]),
        stop_requested=context.stop_requested,
        folder=work,
    )
    _take(work / "model", model, dtype, out, context)
    return int(blocks.size)


def _take(made: Path, model: Path, dtype: str, out: Path, context: Context) -> None:
    config = json.loads((made / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    config["meta"] = {name: value for name, value in config.get("meta", {}).items() if name in META}
    if (made / "quant_log.csv").exists():
        shutil.move(made / "quant_log.csv", context.attachments / "gptq-layers.csv")
    assemble(made, model, out, config, dtype)
    # The same once more, under the name that AutoGPTQ gave it: some readers look nowhere else.
    (out / "quantize_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _emptied(folder: Path) -> Path:
    """GPTQ begins anew after an interruption: what it leaves half-done cannot be gone on with."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
