"""Reads a recipe: `load_recipe(Path("configs/quickstart.yaml"))` gives the flow's name and its parameters.

A recipe is YAML: `flow: sft-then-export`, then parameters under SWIFT's names, flat.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.arguments.base import Arguments
from stages.arguments.message import closest
from stages.errors import ArgumentsError

__all__ = ["FLOWS", "load_recipe", "recipe_arguments"]

FLOWS = {
    "sft": "SftArguments",
    "pt": "PtArguments",
    "rlhf": "RLHFArguments",
    "infer": "InferArguments",
    "deploy": "DeployArguments",
    "eval": "EvalArguments",
    "export": "ExportArguments",
    "sft-then-export": "SftThenExportArguments",
    "nightly-retrain": "NightlyRetrainArguments",
}
"""The flows that a recipe may name, and the class of their parameters."""


def recipe_arguments(flow: str) -> type[Arguments]:
    """The class of a flow's parameters."""
    import stages.arguments

    model: type[Arguments] = getattr(stages.arguments, FLOWS[flow])
    return model


def load_recipe(path: Path) -> tuple[str, dict[str, Any]]:
    """The flow's name and the parameters given for it, whose names have been checked, but not their values.

    Raises:
        ArgumentsError: naming the file, and the line where there is one.
    """
    entries = _entries(path)
    flow, line = entries.pop("flow", (None, 0))
    if flow is None:
        raise ArgumentsError(f"{path}: no `flow:`. Choose from: {', '.join(FLOWS)}")
    if flow not in FLOWS:
        raise ArgumentsError(
            f"{path}:{line}: unknown flow {flow}. Choose from: {', '.join(FLOWS)}.{closest(str(flow), FLOWS)}"
        )
    model = recipe_arguments(flow)
    known = [*model.model_fields, *model.aliases()]
    for name, (_, line) in entries.items():
        if name not in known:
            raise ArgumentsError(f"{path}:{line}: unknown parameter {name}.{closest(name, known)}")
    return flow, {name: value for name, (value, _) in entries.items()}


def _entries(path: Path) -> dict[str, tuple[Any, int]]:
    """Each key of the file with its value and line."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArgumentsError(f"{path}: no such recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentsError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}"
        ) from None
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise ArgumentsError(f"{path}: a recipe is YAML of the form `name: value`, with `flow:` first")
        entries: dict[str, tuple[Any, int]] = {}
        for key, node in root.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in entries:
                raise ArgumentsError(f"{path}:{line}: {name} is given twice, first in line {entries[name][1]}")
            entries[name] = (loader.construct_object(node, deep=True), line)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise ArgumentsError(f"{path}:{mark.line + 1 if mark else 1}: not YAML: {error.problem}") from None
    finally:
        loader.dispose()
    return entries
