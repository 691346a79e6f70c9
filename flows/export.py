"""Merge, quantize and publish: `martlet export --ckpt_dir output/M/v0-…/checkpoint-20 --merge_lora true`."""

from __future__ import annotations

from pathlib import Path

from flows.pipeline import Call, Given, Pipeline, Step
from stages.arguments import ExportArguments, QuantizeArguments
from stages.arguments.export import PushToHubSwitch

__all__ = ["PIPELINE", "export", "publish", "quantize"]

NEEDS_CALIBRATION = ("gptq", "awq")


def quantize(arguments: QuantizeArguments, call: Call, model: Step | Given, tokens: Step | None) -> Step | None:
    """Quantizes if a method was given; only methods that calibrate see any tokens."""
    if arguments.quant_method is None:
        call.skip("quantize", "no --quant_method was given")
        return None
    return call("quantize", model=model, tokens=tokens if arguments.quant_method in NEEDS_CALIBRATION else None)


def publish(arguments: PushToHubSwitch, call: Call, model: Step | Given, report: Step | None = None) -> None:
    """Pushes to a hub if asked to."""
    if arguments.push_to_hub:
        call("push_to_hub", model=model, report=report)
    else:
        call.skip("push_to_hub", "--push_to_hub was not given")


def export(arguments: ExportArguments, call: Call) -> None:
    """Turns a base model, or a base model and an adapter, into what is served."""
    model: Step | Given = call("download")
    adapter = Given(Path(arguments.adapters[0])) if arguments.adapters else None
    product: Step | Given = adapter or model
    if adapter is not None and (arguments.merge_lora or arguments.quant_method is not None):
        product = model = call("merge", model=model, adapter=adapter)
    tokens = None
    if arguments.quant_method in NEEDS_CALIBRATION:
        dataset = call("preprocess")
        tokens = call("tokenize", dataset=dataset, model=model)
    product = quantize(arguments, call, model, tokens) or product
    publish(arguments, call, product)


PIPELINE = Pipeline("export", export, ExportArguments, "merge an adapter, quantize a model, push it to a hub")
