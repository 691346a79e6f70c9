"""What a stage is asked to do: pinned arguments, inputs by digest, and the key that follows from both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.artifacts.key import action_key
from stages.artifacts.reference import ArtifactRef, Kind
from stages.artifacts.tree import Tree
from stages.errors import UserError

if TYPE_CHECKING:
    from stages.arguments.base import Arguments
    from stages.artifacts.store import Store
    from stages.stage import Input, Stage

__all__ = ["Request", "Source", "make_request"]

Paths = Path | tuple[Path, ...]
Source = ArtifactRef | Paths


@dataclass(frozen=True)
class Request:
    """A stage, ready to be looked up or run.

    Attributes:
        stage: which.
        arguments: as its `prepare` left them.
        inputs: whole artifacts by name.
        key: the action key.
        body: what the key was made of.
    """

    stage: Stage[Any]
    arguments: Arguments
    inputs: Mapping[str, ArtifactRef]
    key: str
    body: Mapping[str, Any]


def make_request(
    stage: Stage[Any],
    arguments: Arguments,
    inputs: Mapping[str, Source],
    store: Store,
    take_in: Callable[[Paths, Kind], ArtifactRef | Tree],
) -> Request:
    """Pins the arguments and takes in the inputs.

    Args:
        stage: which.
        arguments: checked arguments of its own model.
        inputs: artifacts in the store, or paths.
        store: where the artifacts are.
        take_in: the store's `take_in`, or its `peek` where nothing is to be copied.

    Raises:
        UserError: an input is missing, unknown, of the wrong kind, or has none of the files that the stage reads.
    """
    sources: dict[str, Source] = dict(inputs)
    if stage.prepare is not None:
        prepared = stage.prepare(arguments)
        arguments = prepared.arguments
        for name in prepared.inputs.keys() & sources.keys():
            raise UserError(f"{stage.name}: input {name} is given twice: its arguments name {prepared.inputs[name]}")
        sources.update(prepared.inputs)
    _check_names(stage, sources)
    trees = {}
    for name, source in sorted(sources.items()):
        taken = source if isinstance(source, ArtifactRef) else take_in(source, stage.inputs[name].kinds[0])
        trees[name] = taken if isinstance(taken, Tree) else store.tree(taken)
    views = {name: _view(f"input {name} of {stage.name}", tree, stage.inputs[name]) for name, tree in trees.items()}
    key, body = action_key(stage, arguments, views)
    return Request(stage, arguments, {name: tree.ref for name, tree in trees.items()}, key, body)


def _check_names(stage: Stage[Any], sources: Mapping[str, Source]) -> None:
    for name in sources:
        if name not in stage.inputs:
            raise UserError(f"{stage.name} has no input {name!r}. Choose from: {', '.join(stage.inputs) or 'none'}")
    missing = [name for name, wanted in stage.inputs.items() if wanted.required and name not in sources]
    if missing:
        wanted = " and ".join(f"{name} (--input {name}=DIGEST_OR_PATH)" for name in missing)
        raise UserError(f"{stage.name} needs its input {wanted}")


def _view(what: str, tree: Tree, wanted: Input) -> str:
    """The digest of what the stage reads of an input."""
    if tree.kind not in wanted.kinds:
        kinds = " or ".join(wanted.kinds)
        raise UserError(f"{what} takes {kinds}, but {tree.digest[:19]} is of kind {tree.kind}")
    view = tree.select(wanted.reads)
    if not view.files:
        held = ", ".join(file.path for file in tree.files[:5]) + (" …" if len(tree.files) > 5 else "")
        raise UserError(f"{what} has no file that matches {' '.join(wanted.reads)}; it holds {held}")
    return view.digest
