"""Stores a model's weights in few bits: bitsandbytes (4, 8) or GPTQ (2, 3, 4, 8).

`python -m stages quantize --input model=DIGEST --input tokens=DIGEST --quant_method gptq --quant_bits 4`
"""

from __future__ import annotations

from pathlib import Path

from stages.arguments import QuantizeArguments
from stages.context import Context
from stages.errors import ArgumentsError, ModelError
from stages.sources.model_folder import MODEL_FILES
from stages.stage import Input, Inputs, Metrics, Stage

__all__ = ["STAGE", "quantize"]


def quantize(arguments: QuantizeArguments, inputs: Inputs, out: Path, context: Context) -> Metrics:
    """Writes a plain Hugging Face folder that `AutoModelForCausalLM.from_pretrained` opens.

    Args:
        arguments: method, bits, and what belongs to the method.
        inputs: `model`, in floating point; `tokens`, whose training rows GPTQ is calibrated on.
        out: the model folder.
        context: GPTQModel's log is among the attachments.

    Raises:
        ArgumentsError: a setting that does not fit the model, or no rows for GPTQ.
        ModelError: the model is quantized already, or a file of it is missing or damaged.
        DataError: too few rows to calibrate on.
    """
    from stages.quantization.folder import count_quantized, weights_bytes
    from stages.sources.model_folder import check_model_folder

    _check(arguments, inputs)
    facts = check_model_folder(inputs["model"])
    dtype = arguments.torch_dtype or DTYPES.get(facts.dtype, "float32")
    metrics: Metrics = {"method": arguments.quant_method, "bits": arguments.quant_bits}
    if arguments.quant_method == "gptq":
        from stages.quantization.gptq import quantize_gptq

        tokens = inputs["tokens"] / "train.arrow"
        metrics["group_size"] = arguments.group_size
        metrics["calibration_tokens"] = quantize_gptq(arguments, inputs["model"], tokens, dtype, out, context)
    else:
        from stages.quantization.bnb import quantize_bnb

        quantize_bnb(arguments, inputs["model"], dtype, out, context)
    before, after = facts.weights_bytes, weights_bytes(out)
    context.logger.info("quantized: %.1f MB became %.1f MB", before / 1e6, after / 1e6)
    return metrics | {
        "num_quantized_layers": count_quantized(out),
        "size_before_bytes": before,
        "size_after_bytes": after,
        "size_ratio": round(after / before, 4),
    }


# What is not quantized keeps its type on every machine: the artifact is made for another one than this, perhaps.
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def _check(arguments: QuantizeArguments, inputs: Inputs) -> None:
    """What can be said before a weight is read."""
    from stages.serving.loading import check_writes, quantization_of

    check_writes(inputs["model"])
    if (method := quantization_of(inputs["model"])) is not None:
        raise ModelError(f"the model is quantized already, by {method}: give the float model that it was made from")
    if not arguments.safe_serialization:
        raise ArgumentsError("`--safe_serialization false`: quantized weights are stored as safetensors only")
    if arguments.quant_method == "gptq" and "tokens" not in inputs:
        raise ArgumentsError("`--quant_method gptq` needs rows to calibrate on: give `--dataset`, or the input tokens")
    if arguments.quant_method == "gptq" and not (inputs["tokens"] / "train.arrow").is_file():
        raise ArgumentsError(
            "`--quant_method gptq` calibrates on tokens, and these rows become tokens later: tokenize them without "
            "`--lazy_tokenize` and `--streaming`"
        )
    if arguments.quant_method not in ("bnb", "gptq"):
        raise ArgumentsError(f"`--quant_method {arguments.quant_method}` is not supported yet: choose from bnb, gptq")


STAGE = Stage(
    name="quantize",
    version=1,
    arguments=QuantizeArguments,
    inputs={
        "model": Input(kinds=("model",), reads=MODEL_FILES, help="the float model"),
        "tokens": Input(
            kinds=("tokens",), reads=("train.arrow",), required=False, help="tokenized rows to calibrate GPTQ on"
        ),
    },
    output="model",
    function=quantize,
    need="gpu",
    libraries=("bitsandbytes", "gptqmodel", "torch", "transformers"),
)
