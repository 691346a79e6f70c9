"""Finds a stage by its name, importing its file only then."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from stages.errors import UnknownReference
from stages.stage import Stage

__all__ = ["STAGE_NAMES", "get_stage"]

STAGE_NAMES = ("download", "preprocess", "tokenize", "train", "merge", "quantize", "evaluate", "push_to_hub")


def get_stage(name: str) -> Stage[Any]:
    """The stage called `name` (dashes are taken for underscores)."""
    module = name.replace("-", "_")
    if module not in STAGE_NAMES:
        raise UnknownReference(f"unknown stage {name!r}. Choose from: {', '.join(STAGE_NAMES)}")
    stage: Stage[Any] = import_module(f"stages.{module}").STAGE
    return stage
