"""What several commands share: which flow is meant, and with which parameters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.parameters import given_parameters
from flows.pipeline import PIPELINE_NAMES, RUN_ON, Pipeline, get_pipeline
from stages.arguments.base import Arguments
from stages.arguments.command_line import help_text, parse
from stages.arguments.recipe import load_recipe
from stages.errors import ArgumentsError

__all__ = ["Request", "read_request", "split_json", "take_options", "take_run_on"]


OPTIONS = """options of the command:
  --run_on here|workers         run the stages in this process, or on workers of the Prefect server (default: here)
  --json                        the run as one JSON object, stdout's last line"""


@dataclass(frozen=True)
class Request:
    """A flow and its checked parameters.

    Attributes:
        pipeline: what to run.
        given: what the user gave, in the recipe or as flags; what the flow run is called with.
        arguments: `given`, checked and completed.
        run_on: `here`, or `workers` of the Prefect server in use.
    """

    pipeline: Pipeline
    given: Mapping[str, Any]
    arguments: Arguments
    run_on: str = "here"


def split_json(argv: list[str]) -> tuple[list[str], bool]:
    """Takes `--json` out of a command line."""
    return [word for word in argv if word != "--json"], "--json" in argv


def take_options(argv: list[str], *names: str) -> tuple[list[str], dict[str, str | None]]:
    """Takes `--name value` and `--name=value` of the given names out of a command line."""
    rest: list[str] = []
    found: dict[str, str | None] = dict.fromkeys(names)
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in found:
            rest.append(word)
            continue
        found[name] = value if equals else next(words, None)
        if not found[name]:
            raise ArgumentsError(f"{name} needs a value")
    return rest, found


def take_run_on(argv: list[str]) -> tuple[list[str], str]:
    """Takes `--run_on here|workers` out of a command line: where stages run is no parameter of theirs.

    Raises:
        ArgumentsError: another place, or workers without a server that knows any.
    """
    argv, options = take_options(argv, "--run_on", "--run-on")
    run_on = options["--run_on"] or options["--run-on"] or "here"
    if run_on not in RUN_ON:
        raise ArgumentsError(f"--run_on {run_on}: choose from {', '.join(RUN_ON)}")
    if run_on == "workers" and not os.environ.get("PREFECT_API_URL"):
        raise ArgumentsError(
            "--run_on workers needs a Prefect server: set PREFECT_API_URL=http://127.0.0.1:4200/api (prefect server "
            "start), then `martlet setup` and a worker"
        )
    return argv, run_on


def read_request(command: str, argv: list[str]) -> Request | None:
    """Reads `sft --flag …` or `run RECIPE --flag …`; prints help and answers None if that was asked for.

    Raises:
        ArgumentsError: one line for the first thing that is wrong.
    """
    base: dict[str, Any] = {}
    name = command
    if command == "run":
        if argv and argv[0] in ("-h", "--help"):
            print(
                "usage: martlet run RECIPE [--name value …] [--json]\n\nA recipe is YAML: `flow:` and parameters.\n\n"
                + OPTIONS
            )
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
        print(f"{help_text(pipeline.arguments, program)}\n\n{OPTIONS}")
        return None
    argv, run_on = take_run_on(argv)
    arguments = parse(argv, pipeline.arguments, base=base, prog=program)
    return Request(pipeline, given_parameters(arguments), arguments, run_on)
