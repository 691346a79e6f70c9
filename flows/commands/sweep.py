"""`martlet sweep RECIPE --learning_rate 1e-4 2e-4 --lora_rank 8 16`: every combination, side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from flows.commands.common import split_json, take_run_on
from flows.cost import load_prices
from flows.parameters import given_parameters, output_folder
from flows.pipeline import get_pipeline
from flows.sweep.axes import read_axes
from flows.sweep.trials import EXPORTS, TRIALS, Trial, axes_of, check_trials, make_trials, unlike
from stages.arguments.command_line import merge, split_flags
from stages.arguments.recipe import load_recipe
from stages.artifacts.store import open_store
from stages.errors import ArgumentsError

__all__ = ["main"]

USAGE = """usage: martlet sweep RECIPE --name value value … [--name value …] [options] [--json]

Trains once for each combination of the values given and compares the results. What the runs have in common (download,
preprocess, tokenize …) is computed once. An option with several values is an axis; with one, it is the same for all.

  --learning_rate 1e-4 2e-4 --lora_rank 8 16     two axes, four runs
  --target_modules q_proj v_proj                 an option that takes a list: one value, the same for all
  --target_modules "q_proj v_proj" "k_proj o_proj"        an axis of two lists, each in quotes
  --target_modules '["all-linear"]' '["q_proj", "v_proj"]'    the same as JSON, also for lists of one

options:
  --metric NAME          what is compared (default: eval_loss). Losses and perplexity: the lowest is best; all others:
                         the highest. A recipe of sft measures eval_loss, train_loss and last_loss; one of
                         sft-then-export is run up to its evaluation, which adds perplexity and the scores of
                         --eval_dataset
  --export_best true     go on to the end of sft-then-export with the best combination alone
  --run_on here|workers  one after the other in this process, or all at once on workers (default: here)
  --json                 the sweep as one JSON object, stdout's last line

A run that fails is a row that says so; the others go on, and the exit code is 1. Parameters: martlet sft --help"""


def main(_command: str, argv: list[str]) -> int:
    """Checks every combination, then runs the sweep and prints what became of it."""
    argv, as_json = split_json(argv)
    if "--help" in argv or "-h" in argv:
        print(USAGE)
        return 0
    if not argv or argv[0].startswith("-"):
        raise ArgumentsError("martlet sweep needs a recipe first: martlet sweep RECIPE --learning_rate 1e-4 2e-4")
    flow, base = load_recipe(Path(argv[0]))
    if flow not in TRIALS:
        raise ArgumentsError(f"a sweep compares trainings, not {flow}. Choose a recipe of: {', '.join(TRIALS)}")
    words, metric, export_best, run_on = _take_options(argv[1:])
    if export_best and flow not in EXPORTS:
        raise ArgumentsError(f"--export_best needs a recipe of {', '.join(sorted(EXPORTS))}, and this one is of {flow}")
    model = get_pipeline(TRIALS[flow]).arguments
    fixed, axes = read_axes(words, model)
    trials = make_trials(flow, merge(base, fixed, model), axes, metric)
    load_prices()
    output_folder(trials[0].arguments)
    check_trials(trials, open_store())
    if metric in ("eval_loss", "eval_acc", "perplexity") and (moving := unlike(axes)):
        print(f"warning: {', '.join(moving)} may change the rows that {metric} is measured on", file=sys.stderr)
    return _run(flow, trials, metric, export_best, run_on, as_json=as_json)


def _take_options(argv: list[str]) -> tuple[list[str], str, bool, str]:
    """Takes the sweep's own options out: what is left are parameters, `metric`, `export_best`, `run_on`."""
    rest: list[str] = []
    own: dict[str, list[str]] = {}
    for typed, words in split_flags(argv):
        name = typed.replace("-", "_")
        if name not in ("metric", "export_best", "run_on"):
            rest += [f"--{typed}", *words]
            continue
        if len(words) > 1 or name in own or (not words and name != "export_best"):
            raise ArgumentsError(f"--{name} takes one value")
        own[name] = words
    text = (own.get("export_best") or ["true" if "export_best" in own else "false"])[0].lower()
    if text not in ("true", "false"):
        raise ArgumentsError(f"--export_best {text}: must be true or false")
    _, run_on = take_run_on(["--run_on", *own["run_on"]] if "run_on" in own else [])
    return rest, own.get("metric", ["eval_loss"])[0], text == "true", run_on


def _run(flow: str, trials: list[Trial], metric: str, export_best: bool, run_on: str, *, as_json: bool) -> int:
    from flows.quiet import start_prefect

    start_prefect()
    from flows.sweep.flow import sweep

    first = trials[0]
    base = {name: value for name, value in given_parameters(first.arguments).items() if name not in first.values}
    state: Any = sweep(flow, base, axes_of(trials), metric, export_best, run_on, return_state=True)
    return _finish(state, as_json=as_json)


def _finish(state: Any, *, as_json: bool) -> int:
    """Prints the record of the finished sweep, which the store has, and answers the exit code."""
    import json

    from flows.sweep.comparison import print_comparison
    from flows.sweep.trials import SweepRecord

    stored = open_store().run(str(state.state_details.flow_run_id))
    record = SweepRecord.from_store(stored)
    for row in record.rows:
        if not row.ok:
            print(f"error: {row.title}: {row.error}", file=sys.stderr)
    if record.error:
        print(f"error: {record.error}", file=sys.stderr)
    if record.export is not None and not record.export["ok"]:
        print(f"error: the export of the best: {record.export.get('error')}", file=sys.stderr)
    if as_json:
        print(json.dumps(record.to_json()), flush=True)
    elif record.rows:
        print_comparison(record)
    return record.exit_code
