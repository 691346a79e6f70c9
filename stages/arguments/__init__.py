"""SWIFT's parameters: one module a group, composed into the arguments of each stage and each command.

`from stages.arguments import SftArguments; SftArguments(model="org/name", dataset=["rows.jsonl"])`
"""

from __future__ import annotations

from stages.arguments.base import Arguments
from stages.arguments.commands import (
    DeployArguments,
    EvalArguments,
    ExportArguments,
    InferArguments,
    PtArguments,
    RLHFArguments,
    SftArguments,
    SftThenExportArguments,
)
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
