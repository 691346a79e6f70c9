"""`martlet rerun STAGE --run ID`: one stage again, with the inputs it had; `--from STAGE`: and what follows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from flows.commands.common import Request, split_json, take_options, take_run_on
from flows.parameters import given_parameters
from flows.pipeline import PIPELINE_NAMES, Given, Pipeline, get_pipeline
from stages.arguments.base import Arguments
from stages.arguments.command_line import parse
from stages.artifacts.reference import ArtifactRef
from stages.artifacts.store import Store, open_store
from stages.errors import ArgumentsError, UnknownReference
from stages.registry import get_stage

__all__ = ["main"]

USAGE = """usage: martlet rerun STAGE (--run ID or --artifact DIGEST) [--name value …] [--json]
       martlet rerun --from STAGE --run ID [--name value …] [--json]

Runs a stage again, even if its result is in the store, with the inputs that it had and the parameters that it
had, but for those given here; --run_on workers runs it on a worker. With --from, the run's later stages follow.
`latest` is the newest run."""


def main(_command: str, argv: list[str]) -> int:
    """Reads the record of the former run and repeats a part of it."""
    argv, as_json = split_json(argv)
    if not argv or "--help" in argv or "-h" in argv:
        print(USAGE)
        return 0
    argv, options = take_options(argv, "--run", "--artifact", "--from")
    store = open_store()
    if options["--from"]:
        if not options["--run"]:
            raise ArgumentsError("--from needs the run to repeat: --run ID (or --run latest)")
        return _rerun_from(store, options["--from"], options["--run"], argv, as_json)
    if not argv or argv[0].startswith("-"):
        raise ArgumentsError("martlet rerun needs a stage first: martlet rerun merge --run latest")
    name, *flags = argv
    stage = get_stage(name)
    if bool(options["--run"]) == bool(options["--artifact"]):
        raise ArgumentsError("give either --run ID or --artifact DIGEST: the record whose inputs are taken")
    if options["--run"]:
        line = _line_of(_run(store, options["--run"], stage.name), stage.name)
        former = line["arguments"]
        inputs = {key: ArtifactRef.from_json(value) for key, value in line["inputs"].items()}
    else:
        former, inputs = _from_artifact(store, options["--artifact"] or "", stage.name)
    base = {key: value for key, value in former.items() if key in stage.arguments.model_fields}
    flags, run_on = take_run_on(flags)
    arguments = parse(flags, stage.arguments, base=_without_defaults(stage.arguments, base), prog="martlet rerun")
    return _run_stage(stage.name, arguments, inputs, run_on, as_json)


def _run(store: Store, run_id: str, stage: str, flows: Collection[str] | None = None) -> dict[str, Any]:
    """A run by its id; `latest` is the newest that has the stage (and, if `flows` are given, is one of them)."""
    if run_id != "latest":
        return store.run(run_id)
    for record in store.runs():
        has = any(line["stage"] == stage and line["status"] != "skipped" for line in record["stages"])
        if has and (flows is None or record["flow"] in flows):
            return record
    raise UnknownReference(f"no run in the store has a stage {stage} yet")


def _line_of(record: dict[str, Any], stage: str) -> dict[str, Any]:
    """The last call of a stage in a run, so that `evaluate` means the evaluation of what was shipped."""
    lines = [line for line in record["stages"] if line["stage"] == stage and line["status"] != "skipped"]
    if not lines:
        had = ", ".join(dict.fromkeys(line["stage"] for line in record["stages"] if line["status"] != "skipped"))
        raise UnknownReference(f"run {record['run']} has no stage {stage}. It has: {had}")
    found: dict[str, Any] = lines[-1]
    return found


def _from_artifact(store: Store, digest: str, stage: str) -> tuple[dict[str, Any], dict[str, ArtifactRef]]:
    reference = store.find(digest)
    manifests = [manifest for manifest in store.manifests(reference) if manifest.stage == stage]
    if not manifests:
        raise UnknownReference(f"{digest} was not made by {stage}. `martlet artifacts show {digest}` says what made it")
    return dict(manifests[0].body["arguments"]), dict(manifests[0].inputs)


def _without_defaults(model: type[Arguments], values: dict[str, Any]) -> dict[str, Any]:
    """Only what differs from its default counts as given; the rest is decided anew."""
    return {name: value for name, value in values.items() if value != model.model_fields[name].get_default()}


def _run_stage(name: str, arguments: Arguments, inputs: dict[str, ArtifactRef], run_on: str, as_json: bool) -> int:
    from flows.commands.run import finish
    from flows.quiet import start_prefect

    start_prefect()
    from prefect import tags

    from flows.flow import flow_for
    from flows.tasks import How

    prepare = get_stage(name).prepare
    named_by_arguments = prepare(arguments).inputs.keys() if prepare else ()

    def page(_arguments: Arguments, call: Any) -> None:
        call(name, **{key: Given(value) for key, value in inputs.items() if key not in named_by_arguments})

    pipeline = Pipeline(name.replace("_", "-"), page, type(arguments), f"the stage {name} by itself")
    flow = flow_for(pipeline, how=How(run_on, frozenset({name})))
    with tags("martlet"):
        state = flow(**given_parameters(arguments), return_state=True)
    return finish(state, as_json=as_json)


def _rerun_from(store: Store, stage: str, run_id: str, flags: list[str], as_json: bool) -> int:
    from flows.commands.run import run_request

    name = get_stage(stage).name
    record = _run(store, run_id, name, PIPELINE_NAMES)
    _line_of(record, name)
    pipeline = get_pipeline(record["flow"])
    flags, run_on = take_run_on(flags)
    arguments = parse(flags, pipeline.arguments, base=record["arguments"], prog="martlet rerun")
    request = Request(pipeline, given_parameters(arguments), arguments, run_on)
    return run_request(request, as_json=as_json, force=frozenset({name}))
