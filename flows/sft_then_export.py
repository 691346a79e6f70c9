"""From rows to a model that can be served: `prefect deployment run sft-then-export/local -p model=… -p dataset=…`."""

from __future__ import annotations

from flows.export import publish, quantize
from flows.pipeline import Call, Pipeline
from flows.sft import CLASSES, fine_tune
from stages.arguments import SftThenExportArguments
from stages.training.tuners import leaves_model

__all__ = ["PIPELINE", "sft_then_export"]


def sft_then_export(arguments: SftThenExportArguments, call: Call) -> None:
    """Fine-tunes, merges, quantizes, measures each of them against the base model, and publishes."""
    model, tokens, trained = fine_tune(call)

    if leaves_model(arguments.train_type):
        call.skip("merge", f"--train_type {arguments.train_type} leaves nothing to merge")
        merged = trained
    else:
        merged = call("merge", model=model, adapter=trained)
    quantized = quantize(arguments, call, merged, tokens)

    report = None
    if arguments.num_labels is not None:
        call.skip("evaluate", CLASSES)
    elif arguments.split_dataset_ratio > 0 or arguments.val_dataset or arguments.eval_dataset:
        call("evaluate", label="base", model=model, tokens=tokens)
        report = call("evaluate", label="tuned", model=merged, tokens=tokens)
        if quantized is not None:
            report = call("evaluate", label="quantized", model=quantized, tokens=tokens)
    else:
        call.skip("evaluate", "no row is held out (--split_dataset_ratio 0) and no --eval_dataset was given")

    publish(arguments, call, quantized or merged, report)


PIPELINE = Pipeline(
    "sft-then-export",
    sft_then_export,
    SftThenExportArguments,
    "fine-tune, merge, quantize, evaluate and publish a model",
)
