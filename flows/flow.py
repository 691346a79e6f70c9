"""A pipeline as a Prefect flow: `flow_for(get_pipeline("sft"))(model="M", dataset=["rows.jsonl"])`.

Its signature is the arguments, flat, under SWIFT's names, so that the UI's form and `-p` know every one of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import Flow, flow

from flows.execute import execute
from flows.naming import run_name
from flows.output import OutputFolder
from flows.pipeline import Call, Given, Pipeline
from flows.record import RunRecord
from stages.arguments.base import Arguments
from stages.arguments.signature import docstring, given, signature
from stages.artifacts.store import open_store
from stages.registry import get_stage

__all__ = ["flow_for", "single_stage"]


def flow_for(
    pipeline: Pipeline,
    *,
    inputs: tuple[str, ...] = (),
    place: Callable[[Arguments], OutputFolder] | None = None,
    force: frozenset[str] = frozenset(),
) -> Flow[..., dict[str, Any]]:
    """The Prefect flow of a pipeline.

    Args:
        pipeline: the page and its arguments.
        inputs: names of artifacts that are given as `-p name=sha256:…` beside the arguments.
        place: makes the output folder; None keeps results in the store alone.
        force: stages that run even if the store has their result.
    """

    def body(**parameters: Any) -> dict[str, Any]:
        artifacts = {name: parameters.pop(name) for name in inputs if name in parameters}
        artifacts = {name: value for name, value in artifacts.items() if value}
        named = given(pipeline.arguments, parameters)
        arguments = pipeline.arguments(**named)
        bound = Pipeline(pipeline.name, _with_inputs(pipeline.page, artifacts), pipeline.arguments, pipeline.help)
        output = place(arguments) if place else None
        record: RunRecord = execute(bound, arguments, output, force=force, given={**named, **artifacts})
        return record.to_json()

    body.__name__ = pipeline.name.replace("-", "_")
    body.__doc__ = docstring(pipeline.arguments, pipeline.help)
    body.__signature__ = _signature(pipeline.arguments, inputs)  # type: ignore[attr-defined]
    body.__annotations__ = {name: p.annotation for name, p in body.__signature__.parameters.items()}  # type: ignore[attr-defined]
    return flow(
        name=pipeline.name,
        description=pipeline.help,
        flow_run_name=run_name,
        persist_result=False,
        validate_parameters=False,
    )(body)


def _with_inputs(page: Callable[..., None], artifacts: dict[str, str]) -> Callable[[Any, Call], None]:
    if not artifacts:
        return page
    return lambda arguments, call: page(arguments, call, **{name: _source(value) for name, value in artifacts.items()})


def _source(value: str) -> Given:
    """`sha256:…` from the store, anything else a path."""
    return Given(open_store().find(value) if value.startswith("sha256:") else Path(value))


def _signature(arguments: type[Arguments], inputs: tuple[str, ...]) -> inspect.Signature:
    flat = signature(arguments)
    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=str, default="")
        for name in inputs
        if name not in flat.parameters
    ]
    return flat.replace(parameters=[*extra, *flat.parameters.values()])


def single_stage(name: str) -> tuple[Pipeline, tuple[str, ...]]:
    """A pipeline of one stage, and the names of the inputs that it takes by digest.

    An input that bears an argument's name (`dataset` of preprocess) is what that argument's path is taken in as.
    """
    stage = get_stage(name)
    inputs = tuple(name for name in stage.inputs if name not in stage.arguments.model_fields)

    def page(_arguments: Arguments, call: Call, **artifacts: Given) -> None:
        call(stage.name, label="", **artifacts)

    title = stage.name.replace("_", "-")
    return Pipeline(title, page, stage.arguments, f"the stage {title} by itself"), inputs
