"""LLaMA-Pro (arXiv 2401.02415), new layers between frozen ones: `--train_type llamapro`."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ArgumentsError, ModelError
from stages.training.tuners import Tuner
from stages.training.tuners.full import check_not_quantized, checkpoint_of_a_model, complete_model, save_model
from stages.training.tuners.layers import decoder_layers, text_config

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stages.arguments import TrainArguments

__all__ = ["LlamaProTuner"]

EXITS = ("o_proj", "out_proj", "c_proj", "dense", "down_proj", "fc2", "dense_4h_to_h")
"""What a layer's attention and MLP end with, by model family: zero, and the layer passes on what it gets."""
PER_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers")
"""Settings with an entry for each layer."""


@dataclass(frozen=True)
class LlamaProTuner(Tuner):
    """Splits the layers into groups, adds copies of each group's last layer, trains those; leaves a plain model.

    Attributes:
        order: for each layer of the grown model, the layer of the base that it is or copies; filled by `check`.
        added: the numbers of the copies.
    """

    arguments: TrainArguments
    order: list[int] = field(default_factory=list)
    added: list[int] = field(default_factory=list)

    def check(self, skeleton: nn.Module) -> None:
        """Plans where the copies go.

        Raises:
            ArgumentsError: the layers cannot be split into so many groups.
            ModelError: the model is quantized, or its layers cannot be grown.
        """
        check_not_quantized(skeleton)
        path, layers = decoder_layers(skeleton)
        blocks = self.arguments.llamapro_num_new_blocks
        groups = self.arguments.llamapro_num_groups or blocks
        if len(layers) % groups:
            flag = "llamapro_num_groups" if self.arguments.llamapro_num_groups else "llamapro_num_new_blocks"
            fits = ", ".join(str(number) for number in range(1, len(layers) + 1) if len(layers) % number == 0)
            raise ArgumentsError(
                f"`--{flag} {groups}` does not divide the model's {len(layers)} layers into equal groups: "
                f"choose from {fits}"
            )
        self.order[:] = []
        self.added[:] = []
        size = len(layers) // groups
        for last in range(size - 1, len(layers), size):
            if sum(name.rpartition(".")[2] != "bias" for name, _ in _exits(layers[last])) < 2:
                raise ModelError(
                    f"LLaMA-Pro cannot grow this model: {path}.{last} has fewer than two of {', '.join(EXITS)}"
                )
            self.order.extend(range(last - size + 1, last + 1))
            for _ in range(blocks // groups):
                self.added.append(len(self.order))
                self.order.append(last)

    def weights(self, base: Path, checkpoint: Path | None) -> Path:
        """The checkpoint, which is a whole, grown model."""
        return base if checkpoint is None else checkpoint_of_a_model(checkpoint, "LLaMA-Pro")

    def prepare(self, model: Any) -> Any:
        """Adds the copies, unless the model comes from a checkpoint, and freezes the rest.

        Raises:
            ModelError: the checkpoint is of a model of another size, or the copies change what the model says.
        """
        import torch

        layers = decoder_layers(model)[1]
        if len(layers) == len(self.order) - len(self.added):
            self._grow(model)
        elif len(layers) != len(self.order):
            raise ModelError(
                f"the checkpoint has {len(layers)} layers, these arguments make the model one of {len(self.order)}"
            )
        model.requires_grad_(False)
        layers = decoder_layers(model)[1]
        for number in self.added:
            for parameter in layers[number].parameters():
                parameter.requires_grad_(True)
                if parameter.dtype == torch.float16:  # it has no room for the steps of an optimizer
                    parameter.data = parameter.data.float()
        if (self.arguments.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            model.enable_input_require_grads()  # or gradient checkpointing would find nothing to go back to
        return model

    def load(self, model: Any, checkpoint: Path) -> None:
        """The model was loaded from the checkpoint."""

    def save(self, model: Any, out: Path) -> None:
        """Writes the whole model."""
        save_model(model, out)

    def complete(self, base: Path, out: Path) -> None:
        """Adds what stands beside a model's weights."""
        complete_model(base, out)

    def _grow(self, model: Any) -> None:
        import torch

        before = _first_logits(model)
        path, layers = decoder_layers(model)
        grown = [
            deepcopy(layers[source]) if number in self.added else layers[source]
            for number, source in enumerate(self.order)
        ]
        with torch.no_grad():
            for number in self.added:
                for _, tensor in _exits(grown[number]):
                    tensor.zero_()
        for number, layer in enumerate(grown):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    setattr(module, "layer_idx", number)  # noqa: B010
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, torch.nn.ModuleList(grown))
        self._grow_config(text_config(model))
        if not torch.equal(before, _first_logits(model)):
            raise ModelError("LLaMA-Pro cannot grow this model: with copies whose ends are zero it says something else")
        _check_config(model)

    def _grow_config(self, config: Any) -> None:
        count = len(self.order) - len(self.added)
        for name in PER_LAYER:
            values = getattr(config, name, None)
            if isinstance(values, list | tuple) and len(values) == count:
                setattr(config, name, [values[source] for source in self.order])
        config.num_hidden_layers = len(self.order)


def _exits(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All that makes up the modules in EXITS; of a mixture of experts one parameter may hold all of them."""
    for name, parameter in layer.named_parameters():
        if any(part in EXITS for part in name.split(".")):
            yield name, parameter


def _first_logits(model: Any) -> Tensor:
    import torch

    training = model.training
    model.eval()
    with torch.no_grad():
        ids = torch.arange(1, 5, device=model.device)[None] % text_config(model).vocab_size
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    model.train(training)
    return logits


def _check_config(model: Any) -> None:
    """Whether the grown configuration describes the grown model: in some families each layer's form follows from it.

    Raises:
        ModelError: it describes another one.
    """
    import torch

    with torch.device("meta"):
        described = type(model)(model.config)
    here, there = (
        {name: tuple(parameter.shape) for name, parameter in one.named_parameters()} for one in (model, described)
    )
    if here != there:
        name = min(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        raise ModelError(f"LLaMA-Pro cannot grow this model: its configuration says where layers differ ({name})")
