"""SWIFT's parameters: one module a group, composed into the arguments of each stage and each command.

`from stages.arguments import SftArguments; SftArguments(model="org/name", dataset=["rows.jsonl"])`
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stages.arguments.commands import HOMES

if TYPE_CHECKING:
    from stages.arguments.base import Arguments
    from stages.arguments.commands.deploy import DeployArguments
    from stages.arguments.commands.eval import EvalArguments
    from stages.arguments.commands.export import ExportArguments
    from stages.arguments.commands.infer import InferArguments
    from stages.arguments.commands.nightly_retrain import NightlyRetrainArguments
    from stages.arguments.commands.pt import PtArguments
    from stages.arguments.commands.rlhf import RLHFArguments
    from stages.arguments.commands.sft import SftArguments
    from stages.arguments.commands.sft_then_export import SftThenExportArguments
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
    "NightlyRetrainArguments",
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


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "base" if name == "Arguments" else "commands" if name in HOMES else "stages"
    return getattr(import_module(f"{__name__}.{home}"), name)
