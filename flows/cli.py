"""The `martlet` command.

martlet sft --model M --dataset D#500 --lora_rank 16
martlet plan configs/quickstart.yaml --learning_rate 2e-4
"""

from __future__ import annotations

import json
import sys
from importlib import import_module

from stages.errors import ArgumentsError, MartletError
from stages.training.cores import share_cores

__all__ = ["main"]

COMMANDS = {
    "sft": ("run", "fine-tune a model on a dataset of instructions or conversations"),
    "pt": ("run", "continue pre-training on plain text (not supported yet)"),
    "rlhf": ("run", "train on preferences: dpo, orpo, simpo, kto, cpo (not supported yet)"),
    "infer": ("run", "generate from a model (not supported yet)"),
    "deploy": ("run", "serve a model over HTTP (not supported yet)"),
    "eval": ("run", "measure a model on benchmarks (not supported yet)"),
    "export": ("run", "merge an adapter, quantize a model, push it to a hub"),
    "run": ("run", "run a recipe: martlet run RECIPE [--name value …]"),
    "sweep": ("sweep", "run every combination of some values side by side: martlet sweep RECIPE --name value value …"),
    "plan": ("plan", "say what a recipe or command would do, and why"),
    "rerun": ("rerun", "run one stage again with the inputs it had"),
    "artifacts": ("artifacts", "list, show, lineage, diff, verify, export"),
    "webhook": ("webhook", "hear of new dataset revisions from a hub and tell the Prefect server"),
    "setup": ("setup", "work pool, queues and deployments on the Prefect server in use"),
    "schedule": ("schedule", "a recipe as a deployment that starts by the clock, or on new data"),
    "env": ("env", "make or list the environments of containers/"),
}


def usage() -> str:
    """The text of `martlet --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: martlet COMMAND …", "", *lines, "", "`martlet COMMAND --help` lists its parameters."])


def dispatch(argv: list[str]) -> int:
    """Runs one command line and answers its exit code.

    Raises:
        MartletError: with the line to show and the exit code to end with.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        from stages import __version__

        print(f"martlet {__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        from difflib import get_close_matches

        close = get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"Choose from: {', '.join(COMMANDS)}"
        raise ArgumentsError(f"unknown command {name}. {hint}")
    command = import_module(f"flows.commands.{COMMANDS[name][0]}")
    exit_code: int = command.main(name, rest)
    return exit_code


def main(argv: list[str] | None = None) -> int:
    """The entry point: errors become one line on stderr and an exit code."""
    share_cores()
    try:
        return dispatch(sys.argv[1:] if argv is None else argv)
    except MartletError as error:
        words = sys.argv[1:] if argv is None else argv
        print(f"error: {error}", file=sys.stderr)
        if "--json" in words:
            print(json.dumps({"flow": words[0], "ok": False, "error": str(error), "stages": []}))
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted. The same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
