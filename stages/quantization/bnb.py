"""bitsandbytes in 4 or 8 bits: `quantize_bnb(arguments, model, out, context)`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ModelError, StageFailed
from stages.quantization.folder import assemble

if TYPE_CHECKING:
    from stages.arguments import QuantizeArguments
    from stages.context import Context

__all__ = ["quantize_bnb"]


def quantize_bnb(arguments: QuantizeArguments, model: Path, dtype: str, out: Path, context: Context) -> None:
    """Rounds every linear layer but the output head; no rows are needed.

    Args:
        arguments: `quant_bits`, `bnb_4bit_…`, `max_shard_size`.
        model: the float model.
        dtype: of what stays in floating point.
        out: the artifact.
        context: progress.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from stages.arguments.merge import shard_bytes
    from stages.serving.loading import check_device
    from stages.training.quiet import quiet

    settings = _settings(arguments, dtype, context)
    weights = context.scratch / "weights"
    with quiet():
        context.reporter.progress(0, 2, f"rounding weights to {arguments.quant_bits} bits")
        try:
            quantized = AutoModelForCausalLM.from_pretrained(
                model,
                quantization_config=settings,
                dtype=getattr(torch, dtype),
                device_map=check_device(arguments.device_map),
                local_files_only=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"the model cannot be opened: {str(error).splitlines()[0]:.300}") from error
        context.reporter.progress(1, 2, "writing the quantized weights")
        quantized.save_pretrained(weights, max_shard_size=shard_bytes(arguments.max_shard_size))
    assemble(weights, model, out, _recorded(quantized), dtype)
    context.reporter.progress(2, 2, "quantized")


def _settings(arguments: QuantizeArguments, dtype: str, context: Context) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if arguments.quant_bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    storage = arguments.bnb_4bit_quant_storage or "uint8"
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=arguments.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=arguments.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=getattr(torch, arguments.bnb_4bit_compute_dtype or dtype),
        bnb_4bit_quant_storage=getattr(torch, storage),
    )


def _recorded(model: Any) -> dict[str, Any]:
    """As transformers reads it again; every setting is named, defaults too."""
    config = model.config.quantization_config
    record: dict[str, Any] = config if isinstance(config, dict) else config.to_dict()
    if not any(type(module).__name__ in ("Linear4bit", "Linear8bitLt") for module in model.modules()):
        raise StageFailed("quantize failed: bitsandbytes found no layer that it can quantize in this model")
    return {name: value for name, value in sorted(record.items()) if not name.startswith("_")}
