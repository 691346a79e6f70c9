"""Supervised fine-tuning: `martlet sft --model M --dataset D`."""

from __future__ import annotations

from flows.pipeline import Call, Pipeline, Step
from stages.arguments import SftArguments

__all__ = ["CLASSES", "PIPELINE", "fine_tune", "sft"]

CLASSES = "--num_labels trains a classifier, and its accuracy on the held-out rows is measured by train: eval_acc"
"""Why one is not evaluated."""


def fine_tune(call: Call) -> tuple[Step, Step, Step]:
    """Rows become tokens, tokens train the model. Gives (base model, tokens, what was trained)."""
    model = call("download")
    dataset = call("preprocess")
    tokens = call("tokenize", dataset=dataset, model=model)
    trained = call("train", model=model, tokens=tokens)
    return model, tokens, trained


def sft(arguments: SftArguments, call: Call) -> None:
    """Fine-tunes a model and keeps the adapter (or, with `--train_type full`, the model)."""
    fine_tune(call)


PIPELINE = Pipeline("sft", sft, SftArguments, "fine-tune a model on a dataset of instructions or conversations")
