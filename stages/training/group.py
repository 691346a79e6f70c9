"""The processes that train together, from within one of them: `index()`, `size()`, `agree(stop)`, `add_up([loss])`.

Where there is one process, everything answers at once. Several are started by `launch.py`, through torchrun.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["add_up", "agree", "from_last", "index", "is_first", "size", "wait"]


def index() -> int:
    """The number of this process, from 0; torchrun has set it."""
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the one that writes files."""
    return index() == 0


def wait() -> None:
    """Until all have come here."""
    if size() > 1:
        _torch().distributed.barrier()


def agree(flag: bool) -> bool:
    """What the first process says, in all of them."""
    if size() == 1:
        return flag
    return bool(_shared([flag], source=0)[0])


def from_last(values: Sequence[int]) -> list[int]:
    """The whole numbers that the last process has, in all of them."""
    if size() == 1:
        return list(values)
    return [int(value) for value in _shared(values, source=size() - 1)]


def add_up(values: Sequence[float]) -> list[float]:
    """The sum over all processes of each number, in all of them the same."""
    if size() == 1:
        return list(values)
    torch = _torch()
    tensor = _tensor(values, torch.float64)
    torch.distributed.all_reduce(tensor)
    added: list[float] = tensor.tolist()
    return added


def _shared(values: Sequence[int], source: int) -> list[int]:
    torch = _torch()
    tensor = _tensor(values, torch.int64)
    torch.distributed.broadcast(tensor, src=source)
    shared: list[int] = tensor.tolist()
    return shared


def _tensor(values: Sequence[float], dtype: Any) -> Tensor:
    """Where the processes' library can reach it: in memory for gloo, on the process's own device for others."""
    torch = _torch()
    on_cpu = torch.distributed.get_backend() == "gloo"
    device = torch.device("cpu") if on_cpu else torch.accelerator.current_accelerator()
    tensor: Tensor = torch.tensor(list(values), dtype=dtype, device=device)
    return tensor


def _torch() -> Any:
    import torch
    import torch.distributed

    return torch
