"""A folder in which the train stage is run again and again, and ways to disturb it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import TrainArguments
from stages.context import Context, NullReporter
from stages.train import train


class Recorder(NullReporter):
    """Remembers what a run shows; at `cut` steps the power fails."""

    def __init__(self, cut: float | None = None) -> None:
        self.cut = cut
        self.progressed: list[tuple[float, float, str]] = []
        self.measured: list[tuple[int, dict[str, float]]] = []
        self.images: list[Path] = []

    def progress(self, done: float, total: float, text: str) -> None:
        self.progressed.append((done, total, text))
        if self.cut is not None and done >= self.cut and total > 1:
            raise PowerCut

    def metrics(self, step: int, values: Any) -> None:
        self.measured.append((step, dict(values)))

    def image(self, name: str, path: Path) -> None:
        assert name == "loss-curve"
        assert path.read_bytes().startswith(b"\x89PNG")
        self.images.append(path)


class PowerCut(BaseException):
    """What no handler catches."""


class FailsAtTheEnd(Recorder):
    """The power fails when all steps are done and nothing is written yet."""

    def image(self, name: str, path: Path) -> None:
        raise PowerCut


class Lab:
    """A folder in which a stage is run again and again, as run.py does it."""

    def __init__(self, folder: Path, model: Path, tokens: Path) -> None:
        self.folder, self.inputs = folder, {"model": model, "tokens": tokens}
        self.tries = 0

    def run(self, arguments: dict[str, Any], reporter: Recorder | None = None, **context: Any) -> dict[str, Any]:
        self.tries += 1
        self.out = self.folder / f"out{self.tries}"
        for folder in (self.out, self.folder / "scratch", self.folder / "attachments"):
            folder.mkdir(parents=True, exist_ok=True)
        self.context = Context(
            self.folder / "scratch", self.folder / "attachments", reporter=reporter or Recorder(), **context
        )
        metrics = train(TrainArguments(**arguments), self.inputs, self.out, self.context)
        # What the process took differs from run to run; the rest must not.
        self.memory = {name: metrics.pop(name) for name in list(metrics) if name.endswith("_memory_bytes")}
        return metrics

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    @property
    def attachments(self) -> Path:
        return self.folder / "attachments"


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


SHORT = {
    "max_steps": 6,
    "save_steps": 2,
    "logging_steps": 2,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "gradient_checkpointing": False,
    "report_to": ["none"],
}


def cut_off_and_whole(
    folder: Path,
    model: Path,
    tokens: Path,
    arguments: dict[str, Any],
    cut: float | str = 4.5,
    inputs: Mapping[str, Path] | None = None,
) -> tuple[Lab, Lab, dict[str, Any]]:
    """A run that is cut off and run again ends in the same bytes and metrics as one that is not.

    Args:
        folder: for both.
        model: the base.
        tokens: what is trained on.
        arguments: of both.
        cut: the step in whose middle the power fails, or `end`.
        inputs: further ones of both.

    Returns:
        The lab of the first, that of the other, the metrics of both.
    """
    whole, lab = Lab(folder / "whole", model, tokens), Lab(folder / "cut", model, tokens)
    for one in (whole, lab):
        one.inputs.update(inputs or {})
    undisturbed = whole.run(arguments)
    with pytest.raises(PowerCut):
        lab.run(arguments, FailsAtTheEnd() if cut == "end" else Recorder(cut=float(cut)))
    assert lab.run(arguments) == undisturbed
    assert digests(lab.out) == digests(whole.out)
    return lab, whole, undisturbed
