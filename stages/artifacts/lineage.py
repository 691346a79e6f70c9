"""Where an artifact came from, and how two differ: `lineage(store, ref)`, `diff(store, a, b)`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from stages.artifacts.describe import describe_ref
from stages.artifacts.key import changes, compact
from stages.artifacts.reference import ArtifactRef
from stages.artifacts.tree import File
from stages.errors import UnknownReference

if TYPE_CHECKING:
    from stages.artifacts.manifest import Manifest
    from stages.artifacts.store import Store

__all__ = ["Difference", "Node", "diff", "lineage", "lineage_text"]


@dataclass(frozen=True)
class Node:
    """One artifact of a lineage, with the newest run that made it.

    Attributes:
        artifact: which.
        stage: who made it; None if a user handed it in.
        key: the action key.
        made: UTC, ISO 8601; empty if a user handed it in.
        seconds: what making it took.
        metrics: what the stage measured.
        inputs: digests by input name.
        taken_in_from: paths, if a user handed it in.
        is_here: whether the store still has it.
        runs: how many different keys have made it.
    """

    artifact: ArtifactRef
    stage: str | None = None
    key: str | None = None
    made: str = ""
    seconds: float = 0.0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    taken_in_from: tuple[str, ...] = ()
    is_here: bool = True
    runs: int = 0

    def to_json(self) -> dict[str, Any]:
        """One entry of `lineage --json`."""
        return asdict(self)


def lineage(store: Store, reference: ArtifactRef) -> list[Node]:
    """An artifact and all that it was made from, each once, results before what they were made from."""
    nodes: dict[str, Node] = {}
    waiting = [reference]
    while waiting:
        ref = waiting.pop(0)
        if ref.digest in nodes:
            continue
        manifests = store.manifests(ref)
        nodes[ref.digest] = _node(store, ref, manifests)
        if manifests:
            waiting.extend(manifests[0].inputs.values())
    return list(nodes.values())


def _node(store: Store, ref: ArtifactRef, manifests: list[Manifest]) -> Node:
    try:
        store.tree(ref)
        is_here = True
    except UnknownReference:
        is_here = False
    if not manifests:
        return Node(ref, taken_in_from=tuple(store.taken_in_from(ref)), is_here=is_here)
    newest = manifests[0]
    return Node(
        artifact=ref,
        stage=newest.stage,
        key=newest.key,
        made=newest.ended,
        seconds=newest.seconds,
        metrics=newest.metrics,
        inputs={name: given.digest for name, given in newest.inputs.items()},
        is_here=is_here,
        runs=len(manifests),
    )


def lineage_text(nodes: list[Node]) -> str:
    """A lineage as a tree of lines; what stands in it twice is unfolded once."""
    by_digest = {node.artifact.digest: node for node in nodes}
    return "\n".join(_branch(nodes[0], "", "", by_digest, set()))


def _branch(node: Node, head: str, indent: str, nodes: Mapping[str, Node], seen: set[str]) -> Iterator[str]:
    repeated = node.artifact.digest in seen
    seen.add(node.artifact.digest)
    yield f"{head}{describe_ref(node.artifact)}  {'(as above)' if repeated else _origin(node)}".rstrip()
    if repeated:
        return
    inputs = list(node.inputs.items())
    for index, (name, digest) in enumerate(inputs):
        is_last = index == len(inputs) - 1
        branch, below = ("└── ", "    ") if is_last else ("├── ", "│   ")
        yield from _branch(nodes[digest], f"{indent}{branch}{name}: ", indent + below, nodes, seen)


def _origin(node: Node) -> str:
    gone = "" if node.is_here else ", no longer in the store"
    if node.stage is None:
        return f"from {' '.join(node.taken_in_from) or 'unknown'}{gone}"
    again = f", made by {node.runs} different runs" if node.runs > 1 else ""
    return f"{node.stage}, {node.made[:16].replace('T', ' ')} UTC, {node.seconds:.1f} s{again}{gone}"


@dataclass(frozen=True)
class Difference:
    """How one artifact differs from another.

    Attributes:
        before: the first.
        after: the second.
        added: paths that only the second has.
        removed: paths that only the first has.
        changed: paths of both with other content.
        causes: what differs in how they were made, in words.
        metrics: the two values of each metric that differs, None where one has none.
    """

    before: ArtifactRef
    after: ArtifactRef
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    causes: tuple[str, ...]
    metrics: Mapping[str, tuple[Any, Any]]

    def to_json(self) -> dict[str, Any]:
        """The form of `diff --json`."""
        return asdict(self)

    def __str__(self) -> str:
        """For people."""
        lines = [f"- {describe_ref(self.before)}", f"+ {describe_ref(self.after)}"]
        lines += [f"  {cause}" for cause in self.causes]
        lines += [f"  {name} {compact(old)} → {compact(new)}" for name, (old, new) in self.metrics.items()]
        for sign, paths in (("+", self.added), ("-", self.removed), ("~", self.changed)):
            lines += [f"  {sign} {path}" for path in paths]
        return "\n".join(lines if len(lines) > 2 else [*lines, "  the same files, made the same way"])


def diff(store: Store, before: ArtifactRef, after: ArtifactRef) -> Difference:
    """Compares files, and the newest runs that made the two.

    Raises:
        UnknownReference: one of them is not in the store.
    """
    old, new = _by_path(store, before), _by_path(store, after)
    first, second = next(iter(store.manifests(before)), None), next(iter(store.manifests(after)), None)
    return Difference(
        before=before,
        after=after,
        added=tuple(path for path in new if path not in old),
        removed=tuple(path for path in old if path not in new),
        changed=tuple(path for path in new if path in old and new[path].sha256 != old[path].sha256),
        causes=_causes(first, second),
        metrics=_metrics(first.metrics if first else {}, second.metrics if second else {}),
    )


def _by_path(store: Store, ref: ArtifactRef) -> dict[str, File]:
    return {file.path: file for file in store.tree(ref).files}


def _causes(before: Manifest | None, after: Manifest | None) -> tuple[str, ...]:
    old, new = (manifest.stage if manifest else "the user" for manifest in (before, after))
    if before is None or after is None or old != new:
        return (f"made by {old} → made by {new}",) if old != new else ()
    return tuple(changes(before.body, after.body, {}))


def _metrics(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [*before, *(name for name in after if name not in before)]
    pairs = {name: (before.get(name), after.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
