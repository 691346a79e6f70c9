"""Fine-tunes and measures what came out, and exports nothing: one trial of `martlet sweep RECIPE --lora_rank 8 16`.

Its stages are the first of `sft-then-export`: the best of a sweep goes on to the export with all of them cached.
"""

from __future__ import annotations

from flows.pipeline import Call, Pipeline
from flows.sft import CLASSES, fine_tune
from stages.arguments import SftThenExportArguments
from stages.training.tuners import leaves_model

__all__ = ["PIPELINE", "sft_then_evaluate"]


def sft_then_evaluate(arguments: SftThenExportArguments, call: Call) -> None:
    """Fine-tunes, merges, and measures the merged model."""
    model, tokens, trained = fine_tune(call)
    merged = trained if leaves_model(arguments.train_type) else call("merge", model=model, adapter=trained)
    if arguments.num_labels is not None:
        call.skip("evaluate", CLASSES)
    elif arguments.split_dataset_ratio > 0 or arguments.val_dataset or arguments.eval_dataset:
        call("evaluate", label="tuned", model=merged, tokens=tokens)
    else:
        call.skip("evaluate", "no row is held out (--split_dataset_ratio 0) and no --eval_dataset was given")


PIPELINE = Pipeline("sft-then-evaluate", sft_then_evaluate, SftThenExportArguments, "fine-tune and measure a model")
