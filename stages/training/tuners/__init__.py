"""What is trained, by the name in `train_type`: `get_tuner(TrainArguments(train_type="lora"))`.

A tuner is one small module; a new one is a line in TUNERS.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stages.errors import ArgumentsError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import TrainerCallback

    from stages.arguments import TrainArguments
    from stages.artifacts.reference import Kind

__all__ = ["TUNERS", "Tuner", "get_tuner", "leaves_model", "output_kind"]

TUNERS: dict[str, tuple[str, Kind]] = {
    "lora": ("stages.training.tuners.lora:LoraTuner", "adapter"),
    "longlora": ("stages.training.tuners.longlora:LongLoraTuner", "adapter"),
    "vera": ("stages.training.tuners.vera:VeraTuner", "adapter"),
    "fourierft": ("stages.training.tuners.fourierft:FourierFtTuner", "adapter"),
    "boft": ("stages.training.tuners.boft:BoftTuner", "adapter"),
    "adalora": ("stages.training.tuners.adalora:AdaLoraTuner", "adapter"),
    "adapter": ("stages.training.tuners.houlsby:HoulsbyTuner", "adapter"),
    "full": ("stages.training.tuners.full:FullTuner", "model"),
    "reft": ("stages.training.tuners.reft:ReftTuner", "adapter"),
    "llamapro": ("stages.training.tuners.llamapro:LlamaProTuner", "model"),
}


class Tuner(Protocol):
    """What a way of training has to answer; a tuner inherits what only some of them need."""

    def check(self, skeleton: nn.Module) -> None:
        """Refuses what cannot work on this model, whose weights are not loaded yet.

        Raises:
            UserError: a module that the model does not have, a setting that it cannot take.
        """

    def plan(self, steps: int) -> None:
        """Takes in how many optimizer steps the run has; called after `check`, before `prepare`.

        Raises:
            ArgumentsError: they do not go with its settings.
        """

    def weights(self, base: Path, checkpoint: Path | None) -> Path:
        """The folder that the model is loaded from, when training starts, or goes on from `checkpoint`."""

    def prepare(self, model: Any) -> Any:
        """The model as it is trained: with adapters, with the right parameters frozen."""

    def load(self, model: Any, checkpoint: Path) -> None:
        """Puts the trained weights of a checkpoint into a prepared model, if `weights` has not done so."""

    def save(self, model: Any, out: Path) -> None:
        """Writes the trained weights, and what describes them, the same bytes for the same weights."""

    def complete(self, base: Path, out: Path) -> None:
        """Makes of what `save` wrote the artifact: a folder that opens on its own."""

    def callbacks(self) -> Sequence[TrainerCallback]:
        """What is to be done between steps."""
        return ()

    def save_state(self, model: Any, checkpoint: Path) -> None:
        """Writes what a run that goes on needs beside weights, into the files named in `TUNER_FILES`."""

    def load_state(self, model: Any, checkpoint: Path) -> None:
        """Takes up what `save_state` wrote; called after `load`, where a run goes on."""

    def extra_loss(self, model: Any) -> Tensor | None:
        """A term that is added to the loss of a step, once, however many parts the step has; not in validation."""
        return None


def get_tuner(arguments: TrainArguments) -> Tuner:
    """The tuner that `train_type` names.

    Raises:
        ArgumentsError: there is none yet.
    """
    if arguments.train_type not in TUNERS:
        raise ArgumentsError(
            f"--train_type {arguments.train_type} is not supported yet: choose from {', '.join(TUNERS)}"
        )
    module, _, name = TUNERS[arguments.train_type][0].partition(":")
    tuner: Tuner = getattr(import_module(module), name)(arguments)
    return tuner


def leaves_model(train_type: str) -> bool:
    """Whether training leaves a whole model, with nothing to merge."""
    return train_type in TUNERS and TUNERS[train_type][1] == "model"


def output_kind(arguments: TrainArguments) -> Kind:
    """What training makes: an adapter, or a whole model."""
    return TUNERS[arguments.train_type][1] if arguments.train_type in TUNERS else "adapter"
