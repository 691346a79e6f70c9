"""SWIFT's parameters: one module a group, composed into the arguments of each stage and each command.

`from stages.arguments import SftArguments; SftArguments(model="org/name", dataset=["rows.jsonl"])`
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.arguments.base import Arguments
    from stages.arguments.commands.export import ExportArguments
    from stages.arguments.commands.serving import DeployArguments, EvalArguments, InferArguments
    from stages.arguments.commands.sft_then_export import SftThenExportArguments
    from stages.arguments.commands.training import PtArguments, RLHFArguments, SftArguments
    from stages.arguments.stages import (
        DownloadArguments,
        EvaluateArguments,
        MergeArguments,
        PreprocessArguments,
        PushToHubArguments,
        QuantizeArguments,
        TokenizeArguments,
        TrainArguments,
    )

__all__ = [
    "Arguments",
    "DeployArguments",
    "DownloadArguments",
    "EvalArguments",
    "EvaluateArguments",
    "ExportArguments",
    "InferArguments",
    "MergeArguments",
    "PreprocessArguments",
    "PtArguments",
    "PushToHubArguments",
    "QuantizeArguments",
    "RLHFArguments",
    "SftArguments",
    "SftThenExportArguments",
    "TokenizeArguments",
    "TrainArguments",
]

# A class of 240 fields takes 10 ms to make: only the one that is asked for is.
_HOMES = {
    "Arguments": "base",
    "DeployArguments": "commands.serving",
    "EvalArguments": "commands.serving",
    "ExportArguments": "commands.export",
    "InferArguments": "commands.serving",
    "PtArguments": "commands.training",
    "RLHFArguments": "commands.training",
    "SftArguments": "commands.training",
    "SftThenExportArguments": "commands.sft_then_export",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'stages')}"), name)
