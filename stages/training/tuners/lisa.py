"""LISA (arXiv 2403.17919), a few layers trained at a time: `--train_type full --lisa_activated_layers 2`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ArgumentsError, ModelError
from stages.training.tuners.layers import decoder_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn
    from transformers import TrainerCallback as Base

    from stages.arguments import TrainArguments
else:
    Base = object  # transformers is imported only where a callback is made

__all__ = ["LisaSwitch", "check_lisa", "make_lisa"]

STATE = "tuner.json"


def check_lisa(arguments: TrainArguments, skeleton: nn.Module) -> None:
    """Whether there are so many layers.

    Raises:
        ArgumentsError: there are fewer.
    """
    path, layers = decoder_layers(skeleton)
    if arguments.lisa_activated_layers > len(layers):
        raise ArgumentsError(
            f"`--lisa_activated_layers {arguments.lisa_activated_layers}`: the model has {len(layers)} layers ({path})"
        )


def make_lisa(arguments: TrainArguments, model: Any) -> LisaSwitch:
    """The callback that chooses layers for a prepared model."""
    from transformers import TrainerCallback

    class Switch(LisaSwitch, TrainerCallback):  # type: ignore[misc]
        pass

    layers = list(decoder_layers(model)[1])
    return Switch(layers, arguments.lisa_activated_layers, arguments.lisa_step_interval, arguments.seed)


class LisaSwitch(Base):  # type: ignore[misc]
    """Freezes all layers but a few, others after every interval; embeddings, last norm and head are always trained.

    The optimizer knows all parameters. It passes over those without a gradient, and keeps their moments until they
    are trained again.
    """

    def __init__(self, layers: Sequence[nn.Module], activated: int, interval: int, seed: int) -> None:
        """All layers are trained until the first step."""
        self.layers, self.activated, self.interval = layers, activated, interval
        self.random = random.Random(seed)
        self.active: list[int] | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Chooses layers, uniformly and without replacement, if it is time to."""
        if self.active is None or state.global_step % self.interval == 0:
            self.active = sorted(self.random.sample(range(len(self.layers)), self.activated))
        for number, layer in enumerate(self.layers):
            layer.requires_grad_(number in self.active)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leaves the model as it was."""
        for layer in self.layers:
            layer.requires_grad_(True)

    def save(self, checkpoint: Path) -> None:
        """Writes the choice and the random state."""
        version, numbers, gauss = self.random.getstate()
        state = {"lisa_active_layers": self.active, "lisa_random_state": [version, list(numbers), gauss]}
        (checkpoint / STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")

    def load(self, checkpoint: Path) -> None:
        """Takes up what `save` wrote; layers are frozen when the next step begins, after the optimizer was made.

        Raises:
            ModelError: the checkpoint is not one of LISA, or of a model with fewer layers.
        """
        from stages.sources.model_folder import read_json

        if not (checkpoint / STATE).is_file():
            raise ModelError(f"the checkpoint {checkpoint.name} has no {STATE}: it is not one of a training with LISA")
        state = read_json(checkpoint / STATE)
        version, numbers, gauss = state["lisa_random_state"]
        self.random.setstate((version, tuple(numbers), gauss))
        self.active = state["lisa_active_layers"]
