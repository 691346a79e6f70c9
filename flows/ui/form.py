"""A flow that is called by one signature and deployed with another: `call_by(body, …)`, `FormFlow(body, …)`.

Prefect makes the form of a deployment from the signature of the flow, and a call from that of the flow's function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from prefect import Flow

from stages.arguments.base import Arguments
from stages.arguments.form import form, parameter
from stages.stage import Stage

__all__ = ["FormFlow", "call_by", "inputs_of"]


@contextmanager
def _without_signature(fn: Callable[..., Any]) -> Iterator[None]:
    """Prefect makes a schema of all parameters of a new flow, which takes half a second and which nobody reads."""
    signature = vars(fn).pop("__signature__")
    try:
        yield
    finally:
        vars(fn)["__signature__"] = signature


class FormFlow(Flow[..., dict[str, Any]]):
    """A flow whose form is made when it is deployed, not at each of its runs."""

    def __init__(self, fn: Callable[..., dict[str, Any]], **options: Any) -> None:
        """Makes the flow of a function that `call_by` has prepared."""
        with _without_signature(fn):
            super().__init__(fn, **options)

    def with_options(self, **options: Any) -> Flow[..., dict[str, Any]]:
        """The same flow under another name, say: to be called, not to be deployed."""
        with _without_signature(self.fn):
            return super().with_options(**options)

    @property
    def __signature__(self) -> inspect.Signature:
        """What `prefect deploy` makes the form from."""
        made: inspect.Signature = self.fn.form()  # type: ignore[attr-defined]
        return made


def call_by(
    body: Callable[..., dict[str, Any]],
    signature: inspect.Signature,
    arguments: type[Arguments],
    own: Mapping[str, inspect.Parameter] | None = None,
) -> None:
    """Gives the function of a flow what it is called by, and what its form is made of."""
    body.__signature__ = signature  # type: ignore[attr-defined]
    body.__annotations__ = {name: each.annotation for name, each in signature.parameters.items()}
    body.form = partial(form, arguments, own)  # type: ignore[attr-defined]


def inputs_of(stage: Stage[Any]) -> dict[str, inspect.Parameter]:
    """The fields of the form for what a stage reads, before its arguments."""
    fields = {}
    for name, each in stage.inputs.items():
        if name in stage.arguments.model_fields:
            continue
        needed = "" if each.required else " Not needed."
        kinds = " or ".join(each.kinds)
        text = f"{each.help[:1].upper()}{each.help[1:]}: {kinds}, as sha256:… from the store, or a path.{needed}"
        fields[name] = parameter(name, {"type": "string"}, text.removeprefix(": "))
    text = "Run even if the store has the result."
    return {**fields, "force": parameter("force", {"type": "boolean"}, text, default=False)}
