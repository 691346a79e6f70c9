"""A pipeline is one page: which stages run in which order, and what flows from one into the next.

A page is a plain function, `page(arguments, call)`. It names stages and passes on what they give, never looking inside.
So the same page can be run (`flows.tasks`), planned (`flows.plan`) or drawn, by whoever stands behind `call`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from stages.arguments.base import Arguments
from stages.artifacts.reference import ArtifactRef
from stages.errors import UnknownReference

__all__ = ["PIPELINE_NAMES", "RUN_ON", "Call", "Given", "Known", "Pipeline", "Step", "get_pipeline"]


@dataclass(frozen=True)
class Given:
    """What the user already has, a folder or an artifact, standing where a stage's output could stand."""

    source: Path | ArtifactRef


@dataclass(frozen=True)
class Step:
    """What a page holds of a stage that it has called. `handle` belongs to whoever stands behind `call`."""

    stage: str
    label: str = ""
    handle: Any = None

    @property
    def title(self) -> str:
        """`evaluate (merged)`: the stage, and which of its calls this is."""
        return f"{self.stage} ({self.label})" if self.label else self.stage


class Call(Protocol):
    """What a page is given to call stages with."""

    def __call__(self, stage: str, *, label: str = "", **inputs: Step | Given | None) -> Step:
        """Runs (or plans) a stage with the page's arguments; inputs that are None are left out."""

    def skip(self, stage: str, reason: str, *, label: str = "") -> None:
        """Says that a stage has nothing to do in this run, and why."""

    def known(self, step: Step) -> Known | None:
        """What a stage has given, for a page that decides by it; None while planning a stage that will run."""

    def undecided(self, stage: str, reason: str, *, label: str = "") -> None:
        """Says, while planning, that what comes before decides whether a stage runs."""


@dataclass(frozen=True)
class Known:
    """What a stage has made and measured."""

    artifact: ArtifactRef
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Pipeline:
    """A page and its arguments.

    Attributes:
        name: the flow, the recipe's `flow:` and the deployment, in dashes.
        page: `page(arguments, call)`.
        arguments: the model that the flags, the recipe or the form are checked with.
        help: one line.
    """

    name: str
    page: Callable[[Any, Call], None]
    arguments: type[Arguments]
    help: str


PIPELINE_NAMES = ("sft", "export", "sft-then-export", "sft-then-evaluate", "nightly-retrain")


RUN_ON = ("here", "workers")
"""Where a flow's stages run: in its own process, or each as a run of its own deployment."""


def get_pipeline(name: str) -> Pipeline:
    """The pipeline called `name`, importing its page only now."""
    if name not in PIPELINE_NAMES:
        raise UnknownReference(f"unknown flow {name!r}. Choose from: {', '.join(PIPELINE_NAMES)}")
    pipeline: Pipeline = import_module(f"flows.{name.replace('-', '_')}").PIPELINE
    return pipeline
