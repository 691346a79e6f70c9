"""What a checkpoint holds of an optimizer: `writes_plain_state(optimizer)`, `takes_up_its_own(optimizer)`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stages.errors import ArgumentsError, ModelError

__all__ = ["takes_up_its_own", "writes_plain_state"]

ADDED = {"params", "initial_lr"}
"""In a group that has been trained, whatever the optimizer."""


def writes_plain_state(optimizer: Any) -> None:
    """From now on a state is not written that a checkpoint could not give back: it holds tensors and plain values.

    Raises:
        ArgumentsError: later, naming what it holds.
    """
    optimizer.register_state_dict_post_hook(_check_plain)


def takes_up_its_own(optimizer: Any) -> None:
    """From now on the state of another optimizer is not taken up; torch would, and fail or be wrong afterwards.

    Raises:
        ModelError: later, naming what differs.
    """
    if hasattr(optimizer, "register_load_state_dict_pre_hook"):
        optimizer.register_load_state_dict_pre_hook(_check_same)


def _check_plain(optimizer: Any, state: dict[str, Any]) -> None:
    for value in _leaves(state):
        raise ArgumentsError(
            f"the state of {_name(optimizer)} holds a {type(value).__name__}, which a checkpoint cannot give back: "
            "keep tensors and plain values in it"
        )


def _leaves(value: Any) -> Iterator[Any]:
    """What is no tensor, no number and no text."""
    import torch

    plain = (type(None), bool, int, float, complex, str, torch.Size, torch.device, torch.dtype)
    if isinstance(value, dict):
        for one in value.values():
            yield from _leaves(one)
    elif type(value) in (list, tuple, set):
        for one in value:
            yield from _leaves(one)
    elif not isinstance(value, torch.Tensor) and type(value) not in plain:
        yield value


def _check_same(optimizer: Any, state: dict[str, Any]) -> None:
    then, now = state["param_groups"], optimizer.param_groups
    sizes = [[len(group["params"]) for group in groups] for groups in (then, now)]
    advice = (
        "give the `--optimizer` and `--optim` that it was trained with, or `--resume_only_model true` to take only "
        "its weights"
    )
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"the checkpoint's optimizer has groups of {_listed(sizes[0])} parameters, and {_name(optimizer)} of "
            f"{_listed(sizes[1])}: {advice}"
        )
    for old, new in zip(then, now, strict=True):
        only_then, only_now = old.keys() - new.keys() - ADDED, new.keys() - old.keys() - ADDED
        if only_then and only_now:  # a newer release of the same one may have more, or fewer
            raise ModelError(
                f"the checkpoint's optimizer has {', '.join(sorted(only_then))}, and {_name(optimizer)} has "
                f"{', '.join(sorted(only_now))}: {advice}"
            )


def _name(optimizer: Any) -> str:
    return type(optimizer).__name__


def _listed(sizes: list[int]) -> str:
    return " and ".join(map(str, sizes))
