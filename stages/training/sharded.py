"""A model whose weights several processes share, and the whole of it for writing: `with whole(model, state): …`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["is_finite", "whole"]


@contextmanager
def whole(model: Any, state: Mapping[str, Any] | None) -> Iterator[None]:
    """Lets the model answer with `state`, which was gathered from all processes, when it is asked for its weights.

    Args:
        model: whose own weights are parts.
        state: None where they are whole.
    """
    if state is None:
        yield
        return
    model.state_dict = lambda *args, **kwargs: dict(state)
    try:
        yield
    finally:
        del model.state_dict


def is_finite(parameter: Any) -> bool:
    """Whether what this process has of a parameter are numbers."""
    own = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return bool(own.isfinite().all())
