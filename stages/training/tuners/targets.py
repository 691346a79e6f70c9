"""Which modules of a model are meant by names such as all-linear: `find_targets(model, ["all-linear"], None)`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from stages.errors import ArgumentsError
from stages.training.multimodal import language_part

if TYPE_CHECKING:
    from torch import nn

__all__ = ["find_modules_to_save", "find_targets"]

HEADS = ("lm_head", "score", "v_head", "classifier", "embed_out")
"""Output heads, which all-linear leaves out, as SWIFT and peft do."""


def find_targets(model: nn.Module, names: Sequence[str], regex: str | None) -> list[str] | str:
    """What peft is to be given as its target_modules.

    Args:
        model: the base model; its weights need not be there.
        names: module names, or the ends of their paths; `all-linear` and `all-embedding` stand for what they say, in
            the language part of a model that also sees.
        regex: replaces `names`: matched against whole paths.

    Returns:
        The regular expression, or names in alphabetical order.

    Raises:
        ArgumentsError: something is named that the model does not have, or that cannot have an adapter.
    """
    layers = {path: module for path, module in model.named_modules() if _can_have_adapter(module)}
    if regex is not None:
        if not any(re.fullmatch(regex, path) for path in layers):
            raise ArgumentsError(f"`--target_regex {regex}` matches no module. {_held(layers)}")
        return regex
    found: set[str] = set()
    part = language_part(model)
    of_all = {path: module for path, module in layers.items() if part is None or path.startswith(f"{part}.")}
    named = _last if part is None else str  # other parts have modules of the same names
    for name in names:
        if name == "all-linear":
            found |= {named(path) for path, module in of_all.items() if _is_linear(module) and _last(path) not in HEADS}
        elif name == "all-embedding":
            found |= {named(path) for path, module in of_all.items() if not _is_linear(module)}
        else:
            _check_name("target_modules", name, layers, ["all-linear", "all-embedding"])
            found.add(name)
    return sorted(found)


def find_modules_to_save(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Names of modules that are trained in full; `all-embedding` and `all-norm` stand for what they say.

    Raises:
        ArgumentsError: something is named that the model does not have.
    """
    modules = {
        path: module for path, module in model.named_modules() if path and next(module.parameters(), None) is not None
    }
    leaves = {path: module for path, module in modules.items() if not any(module.children())}
    found: set[str] = set()
    for name in names:
        if name == "all-embedding":
            found |= {_last(path) for path, module in leaves.items() if type(module).__name__.endswith("Embedding")}
        elif name == "all-norm":
            found |= {_last(path) for path, module in leaves.items() if "norm" in type(module).__name__.lower()}
        else:
            _check_name("modules_to_save", name, modules, ["all-embedding", "all-norm"])
            found.add(name)
    return sorted(found)


def _can_have_adapter(module: nn.Module) -> bool:
    from torch import nn

    return _is_linear(module) or isinstance(module, nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d)


def _is_linear(module: nn.Module) -> bool:
    """Also of quantized models, and GPT-2's Conv1D, which is a linear layer with its sides swapped."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D) or hasattr(module, "qweight") or hasattr(module, "W_q")


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _check_name(parameter: str, name: str, modules: Iterable[str], special: Sequence[str]) -> None:
    if any(path == name or path.endswith(f".{name}") for path in modules):
        return
    close = get_close_matches(name, [*{_last(path) for path in modules}, *special], n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ArgumentsError(f"`--{parameter} {name}`: the model has no such module.{hint} {_held(modules)}")


def _held(modules: Iterable[str]) -> str:
    counts = Counter(_last(path) for path in modules if not _last(path).isdigit())
    return f"It has {', '.join(f'{name} ({count})' for name, count in counts.most_common(20))}"
