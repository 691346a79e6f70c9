"""What several commands share: which flow is meant, and with which parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.arguments.command_line import help_text, parse
from stages.arguments.recipe import load_recipe

from flows.parameters import given_parameters
from flows.pipeline import PIPELINE_NAMES, Pipeline, get_pipeline
from stages.arguments.base import Arguments
from stages.errors import ArgumentsError

__all__ = ["Request", "read_request", "split_json"]


@dataclass(frozen=True)
class Request:
    """A flow and its checked parameters.

    Attributes:
        pipeline: what to run.
        given: what the user gave, in the recipe or as flags; what the flow run is called with.
        arguments: `given`, checked and completed.
    """

    pipeline: Pipeline
    given: Mapping[str, Any]
    arguments: Arguments


def split_json(argv: list[str]) -> tuple[list[str], bool]:
    """Takes `--json` out of a command line."""
    return [word for word in argv if word != "--json"], "--json" in argv


def read_request(command: str, argv: list[str]) -> Request | None:
    """Reads `sft --flag …` or `run RECIPE --flag …`; prints help and answers None if that was asked for.

    Raises:
        ArgumentsError: one line for the first thing that is wrong.
    """
    base: dict[str, Any] = {}
    name = command
    if command == "run":
        if argv and argv[0] in ("-h", "--help"):
            print("usage: martlet run RECIPE [--name value …] [--json]\n\nA recipe is YAML: `flow:` and parameters.")
            return None
        if not argv or argv[0].startswith("-"):
            raise ArgumentsError("martlet run needs a recipe first: martlet run configs/quickstart.yaml")
        name, base = load_recipe(Path(argv[0]))
        argv = argv[1:]
    if name not in PIPELINE_NAMES:
        raise ArgumentsError(f"martlet {name} is not supported yet. Supported: {', '.join(PIPELINE_NAMES)}")
    pipeline = get_pipeline(name)
    program = f"martlet {command}"
    if "--help" in argv or "-h" in argv:
        print(help_text(pipeline.arguments, program))
        return None
    arguments = parse(argv, pipeline.arguments, base=base, prog=program)
    return Request(pipeline, given_parameters(arguments), arguments)
