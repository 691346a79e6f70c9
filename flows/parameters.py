"""From what a user typed, on whichever surface, to checked arguments and the folder that the results go to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from flows.output import OutputFolder, model_suffix
from stages.arguments import ExportArguments, SftArguments
from stages.arguments.base import Arguments
from stages.arguments.command_line import error_line
from stages.artifacts.store import open_store
from stages.errors import ArgumentsError

__all__ = ["given_parameters", "output_folder", "resolve"]

A = TypeVar("A", bound=Arguments)

FILLED_FROM_CHECKPOINT = ("model", "model_revision", "use_hf", "system")


def given_parameters(arguments: Arguments) -> dict[str, Any]:
    """What the user gave, as JSON values: what a flow run is called with, recorded with and repeated with."""
    return arguments.model_dump(mode="json", include=set(arguments.model_fields_set), exclude_defaults=True)


def resolve(model: type[A], given: Mapping[str, Any]) -> A:
    """Checks parameters, filling from `--ckpt_dir`'s args.json what was left open.

    Raises:
        ArgumentsError: one line naming the parameter and what is wrong with it.
    """
    parameters = dict(given)
    if parameters.get("ckpt_dir"):
        parameters = _with_checkpoint(parameters)
    try:
        return model(**parameters)
    except ValidationError as error:
        raise ArgumentsError(error_line(error)) from None


def _with_checkpoint(given: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint is an adapter, whose base its args.json names, or a full model that stands for `--model`."""
    folder = Path(given["ckpt_dir"])
    if not folder.is_dir():
        raise ArgumentsError(f"--ckpt_dir: no folder {folder}")
    saved = folder / "args.json"
    former: dict[str, Any] = {}
    if saved.is_file():
        try:
            former = json.loads(saved.read_text())
        except ValueError as error:
            raise ArgumentsError(f"--ckpt_dir: {saved} is not JSON: {error}") from None
    if (folder / "adapter_config.json").is_file():
        filled = {name: former[name] for name in FILLED_FROM_CHECKPOINT if former.get(name)}
        if not (given.get("model") or filled.get("model")):
            raise ArgumentsError(f"--ckpt_dir: {folder} does not say which model it adapts. Give it as --model")
        return {**filled, **given, "adapters": given.get("adapters") or [str(folder)]}
    if not (folder / "config.json").is_file():
        raise ArgumentsError(f"--ckpt_dir: {folder} holds neither adapter_config.json nor config.json")
    if given.get("model"):
        raise ArgumentsError("--ckpt_dir is a full model: leave --model out, or give an adapter's checkpoint")
    return {**given, "model": str(folder)}


def output_folder(arguments: Arguments) -> OutputFolder:
    """Where a run's results go: `output/<model>/v<N>-<time>`, or beside the checkpoint that is exported.

    Raises:
        ArgumentsError: the folder for an export exists and is not a former export.
    """
    store = open_store()
    if isinstance(arguments, SftArguments):
        root = Path(arguments.output_dir or Path("output") / model_suffix(arguments.model))
        return OutputFolder(store, root, arguments.add_version, arguments)
    if isinstance(arguments, ExportArguments):
        return _export_folder(arguments, OutputFolder(store, Path(), add_version=False, arguments=arguments))
    raise TypeError(type(arguments).__name__)


def _export_folder(arguments: ExportArguments, output: OutputFolder) -> OutputFolder:
    products = ["merged"] if arguments.adapters and (arguments.merge_lora or arguments.quant_method) else []
    if arguments.quant_method:
        products.append(f"{arguments.quant_method}-int{arguments.quant_bits}")
    if arguments.output_dir and len(products) == 1:
        output.single = Path(arguments.output_dir)
    elif arguments.output_dir:
        output.root = Path(arguments.output_dir)
    if arguments.adapters and not arguments.output_dir:
        output.checkpoint = Path(arguments.adapters[0])
    output.check_free(products)
    return output
