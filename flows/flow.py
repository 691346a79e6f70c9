"""A pipeline as a Prefect flow: `flow_for(get_pipeline("sft"))(model="M", dataset=["rows.jsonl"])`.

Its signature is the arguments, flat, under SWIFT's names, so that the UI's form and `-p` know every one of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from prefect import Flow

from flows.dispatch import cancel_children
from flows.execute import execute
from flows.output import OutputFolder
from flows.pipeline import RUN_ON, Call, Given, Pipeline
from flows.record import RunRecord
from flows.tasks import HERE, How
from flows.ui.form import FormFlow, call_by, inputs_of
from flows.ui.logs import say_errors_in_one_line
from flows.ui.naming import run_name
from stages.arguments.base import Arguments
from stages.arguments.signature import given, signature
from stages.artifacts.store import open_store
from stages.errors import ArgumentsError
from stages.registry import get_stage

__all__ = ["flow_for", "single_stage", "stage_flow"]


def flow_for(
    pipeline: Pipeline,
    *,
    place: Callable[[Arguments, How], OutputFolder | None] | None = None,
    how: How = HERE,
) -> Flow[..., dict[str, Any]]:
    """The Prefect flow of a pipeline.

    Args:
        pipeline: the page and its arguments.
        place: makes the output folder; without one, results are in the store alone.
        how: stages that run even if the store has their result, and where they run unless `run_on` is given.
    """

    def body(**parameters: Any) -> dict[str, Any]:
        run_on = parameters.pop("run_on", how.run_on)
        if run_on not in RUN_ON:
            raise ArgumentsError(f"run_on {run_on!r}: choose from {', '.join(RUN_ON)}")
        named = given(pipeline.arguments, parameters)
        arguments = pipeline.arguments(**named)
        chosen = replace(how, run_on=run_on)
        output = place(arguments, chosen) if place else None
        record: RunRecord = execute(pipeline, arguments, output, how=chosen, given=named)
        return record.to_json()

    return _as_flow(body, pipeline, [], [_parameter("run_on", Literal["here", "workers"], how.run_on)])


def stage_flow(name: str) -> Flow[..., dict[str, Any]]:
    """The Prefect flow of one stage: a deployment of its own, and what a flow starts on a worker.

    Beside the stage's arguments it takes its inputs by digest, as `model=sha256:…` or together as `artifacts`, which
    also has those that bear an argument's name; `force`; and `asked`, what the caller expects (see `flows.dispatch`).
    """
    pipeline, inputs = single_stage(name)

    def body(**parameters: Any) -> dict[str, Any]:
        artifacts = {**{key: parameters.pop(key, "") for key in inputs}, **(parameters.pop("artifacts", None) or {})}
        force, asked = parameters.pop("force", False), parameters.pop("asked", None)
        how = How(force=frozenset({name} if force else ()), asked=asked)
        artifacts = {key: value for key, value in artifacts.items() if value}
        named = given(pipeline.arguments, parameters)
        page = _with_inputs(pipeline.page, artifacts)
        bound = Pipeline(pipeline.name, page, pipeline.arguments, pipeline.help)
        record = execute(bound, pipeline.arguments(**named), how=how, given={**named, **artifacts})
        return record.to_json()

    own = [
        _parameter("artifacts", dict[str, str], {}),
        _parameter("force", bool, False),
        _parameter("asked", dict[str, Any] | None, None),
    ]
    shown = inputs_of(get_stage(name))
    return _as_flow(body, pipeline, [_parameter(key, str, "") for key in inputs], own, shown)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _as_flow(
    body: Callable[..., dict[str, Any]],
    pipeline: Pipeline,
    first: list[inspect.Parameter],
    last: list[inspect.Parameter],
    shown: Mapping[str, inspect.Parameter] | None = None,
) -> Flow[..., dict[str, Any]]:
    """Gives Prefect the function, and the function its flat signature; `shown` are the form's first fields."""
    body.__name__ = pipeline.name.replace("-", "_")
    say_errors_in_one_line()
    flat = signature(pipeline.arguments)
    call_by(body, flat.replace(parameters=[*first, *flat.parameters.values(), *last]), pipeline.arguments, shown)
    return FormFlow(
        body,
        name=pipeline.name,
        description=pipeline.help,
        flow_run_name=run_name,
        persist_result=False,
        validate_parameters=False,
        on_cancellation=[cancel_children],
    )


def _with_inputs(page: Callable[..., None], artifacts: dict[str, str]) -> Callable[[Any, Call], None]:
    if not artifacts:
        return page
    return lambda arguments, call: page(arguments, call, **{name: _source(value) for name, value in artifacts.items()})


def _source(value: str) -> Given:
    """`sha256:…` from the store, anything else a path."""
    return Given(open_store().find(value) if value.startswith("sha256:") else Path(value))


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
