"""What a quantizer must know of a model before it starts: `check_layers(folder, group_size=128, block=2048)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.errors import ArgumentsError, ModelError

__all__ = ["GROUP_SIZES", "check_layers"]

GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)
"""Those that GPTQ's kernels take; -1 is one group a row."""

WORD_BITS = 32


def check_layers(folder: Path, *, group_size: int, block: int) -> int:
    """Holds the settings of GPTQ against the shapes of the model, without its weights.

    Returns:
        The number of tokens that the model knows.

    Raises:
        ArgumentsError: a group size that does not divide a layer's inputs, or a block longer than the model takes.
        ModelError: no linear layer, or one whose sides cannot be packed into 32-bit words.
    """
    from stages.training.loading import load_skeleton

    skeleton = load_skeleton(folder)
    config = skeleton.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if limit and block > limit:
        raise ArgumentsError(f"`--quant_seqlen {block}` is longer than the {limit} tokens that the model takes")
    _check_groups(_linear_layers(skeleton), group_size)
    return int(config.vocab_size)


def _linear_layers(skeleton: Any) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linear layers but the output head, by name."""
    import torch

    head = skeleton.get_output_embeddings()
    layers = {
        name: (module.in_features, module.out_features)
        for name, module in skeleton.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    if not layers:
        raise ModelError(f"{type(skeleton).__name__} has no linear layer that GPTQ could quantize")
    for name, sides in layers.items():
        if any(side % WORD_BITS for side in sides):
            shape = " x ".join(map(str, sides))
            raise ModelError(f"{name} is {shape}: GPTQ packs weights of which both sides are multiples of {WORD_BITS}")
    return layers


def _check_groups(layers: dict[str, tuple[int, int]], group_size: int) -> None:
    fitting = [size for size in GROUP_SIZES if all(inputs % size == 0 for inputs, _ in layers.values())]
    choices = f"Choose from: {', '.join(map(str, [*fitting, -1]))}"
    if group_size == -1:
        return
    for name, (inputs, _) in layers.items():
        if inputs % group_size:
            raise ArgumentsError(
                f"`--group_size {group_size}` does not divide the {inputs} inputs of {name}. {choices}"
            )
    if group_size not in GROUP_SIZES:
        raise ArgumentsError(f"`--group_size {group_size}` has no kernel in GPTQModel. {choices}")
