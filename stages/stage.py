"""What a stage is: a name, a version, its arguments, what it reads, what it makes, and one function.

Each stage file ends in `STAGE = Stage(name="merge", …, function=merge)`; `stages.registry.STAGES` finds it by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from stages.arguments.base import Arguments
from stages.artifacts.reference import Kind
from stages.context import Context

__all__ = ["Input", "Inputs", "Metrics", "Need", "Prepared", "Stage"]

Need = Literal["cpu", "gpu"]
Inputs = Mapping[str, Path]
Metrics = dict[str, Any]
A = TypeVar("A", bound=Arguments)


@dataclass(frozen=True)
class Input:
    """One named input: what may stand there, and which of its files the stage reads.

    Only the files that match `reads` (globs relative to the artifact's root) enter the key and are checked out:
    tokens stay cached when only the weights of the model changed.
    """

    kinds: tuple[Kind, ...]
    reads: tuple[str, ...] = ("**",)
    required: bool = True
    help: str = ""


@dataclass(frozen=True)
class Prepared(Generic[A]):
    """Arguments whose moving parts (a branch, a local path) have been pinned, and the paths to take in as inputs.

    Several paths for one input become one folder, `0/…`, `1/…`.
    """

    arguments: A
    inputs: Mapping[str, Path | tuple[Path, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage(Generic[A]):
    """A stage, as data.

    Attributes:
        name: the verb: also the file, the command, the task and the deployment.
        version: bumped by hand when the same arguments and inputs now give another output.
        arguments: the model of the arguments that this stage, and no other, acts upon.
        inputs: the artifacts that it reads, by name.
        output: the kind it makes, or a function of its arguments that says so.
        function: `function(arguments, inputs, out, context) -> metrics`. It reads only `inputs` (read-only paths)
            and `context.scratch`, and writes only into `out`, `context.attachments` and `context.scratch`.
        need: the work queue that it belongs to.
        libraries: distributions whose version changes the output, and therefore the key; `evaluate/evalscope` is the
            one that the lock of the environment `evaluate` holds.
        more_libraries: those that matter to some arguments only.
        cacheable: False where the point is an effect outside of the store.
        prepare: pins what moves before the key is made: a branch becomes a commit, a local path an input.
            It loads no model and is quick enough for `martlet plan`.
        can_resume: whether the scratch folder given holds something to go on from.
        environment: the lock file (`containers/NAME/`) that it runs in.
    """

    name: str
    version: int
    arguments: type[A]
    inputs: Mapping[str, Input]
    output: Kind | Callable[[A], Kind]
    function: Callable[[A, Inputs, Path, Context], Metrics]
    need: Need = "cpu"
    libraries: tuple[str, ...] = ()
    more_libraries: Callable[[A], tuple[str, ...]] | None = None
    cacheable: bool = True
    prepare: Callable[[A], Prepared[A]] | None = None
    can_resume: Callable[[Path], bool] | None = None
    environment: str = "core"

    def output_kind(self, arguments: A) -> Kind:
        """The kind of artifact that these arguments make."""
        return self.output(arguments) if callable(self.output) else self.output

    def libraries_of(self, arguments: A) -> tuple[str, ...]:
        """The distributions whose version changes what comes of these arguments."""
        return self.libraries if self.more_libraries is None else (*self.libraries, *self.more_libraries(arguments))
