"""The layers of a decoder, one after the other: `decoder_layers(model)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["decoder_layers", "text_config"]


def text_config(model: Any) -> Any:
    """The configuration of the part that writes."""
    return model.config.get_text_config(decoder=True)


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """Path and list of a decoder's layers, in a model that may also see or hear.

    Raises:
        ModelError: there is no such list.
    """
    from torch import nn

    decoder, count = model.get_decoder(), text_config(model).num_hidden_layers
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and _within(decoder, module):
            return path, module
    raise ModelError(f"the model ({type(model).__name__}) has no list of {count} decoder layers")


def _within(decoder: nn.Module, layers: nn.ModuleList) -> bool:
    return any(module is layers for module in decoder.modules())
