"""A flow that is called by one signature and deployed with another: `FormFlow(body, name="sft", …)`.

Prefect makes the form of a deployment from the signature of the flow, and a call from that of the flow's function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from prefect import Flow

from stages.arguments.base import Arguments
from stages.arguments.form import form, parameter
from stages.stage import Stage

__all__ = ["FormFlow", "call_by", "inputs_of"]


class FormFlow(Flow[..., dict[str, Any]]):
    """A flow whose form is made when it is deployed, not at each of its runs."""

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
    """Gives the function of a flow, once the flow is made, what it is called by and what its form is made of.

    Before that Prefect would make a schema of all parameters, which takes half a second, and which nobody reads.
    """
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
