"""`martlet plan RECIPE|COMMAND …`: what would run, and why; nothing heavy is imported and nothing is run."""

from __future__ import annotations

from flows.commands.common import read_request, split_json
from flows.pipeline import PIPELINE_NAMES
from flows.plan import plan
from flows.summary import print_plan
from stages.artifacts.store import open_store
from stages.errors import ArgumentsError

__all__ = ["main"]


def main(_command: str, argv: list[str]) -> int:
    """Plans a recipe (`plan configs/quickstart.yaml …`) or a command (`plan sft --model …`)."""
    argv, as_json = split_json(argv)
    if argv and argv[0] in ("-h", "--help"):
        print("usage: martlet plan RECIPE|COMMAND [--name value …] [--json]\n\nSays per stage: cached, run or resume.")
        return 0
    if not argv or argv[0].startswith("-"):
        raise ArgumentsError("martlet plan needs a recipe or a command first: martlet plan sft --model M --dataset D")
    request = read_request(argv[0], argv[1:]) if argv[0] in PIPELINE_NAMES else read_request("run", argv)
    if request is None:
        return 0
    lines = plan(request.pipeline, request.arguments, open_store())
    print_plan([line.to_json() for line in lines], request.pipeline.name, as_json=as_json)
    return 0
