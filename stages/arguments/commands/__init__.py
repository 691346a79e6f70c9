"""The arguments of SWIFT's seven commands, and of the flow from rows to a published model.

Each is made of the stages that the command runs, and `arguments.for_stage(TrainArguments)` gives one stage its part.
A class of 240 fields takes 10 ms to make, so only the one that is asked for is: `stages.arguments.SftArguments`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["HOMES"]

HOMES = {
    "DeployArguments": "deploy",
    "EvalArguments": "eval",
    "ExportArguments": "export",
    "InferArguments": "infer",
    "NightlyRetrainArguments": "nightly_retrain",
    "PtArguments": "pt",
    "RLHFArguments": "rlhf",
    "SftArguments": "sft",
    "SftThenExportArguments": "sft_then_export",
}
"""The module of each class."""


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
