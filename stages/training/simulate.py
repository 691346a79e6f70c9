"""A training step without numbers, to see what it keeps in memory: `simulate_step(skeleton, Batch(4, 512, 900))`.

The model is on the meta device, where tensors have a shape and no content. It runs forward and backward as it will,
every operation is seen, and the bytes that live at a time are added up: whatever the model's structure or the adapter
is, they are counted as autograd keeps them.
"""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Batch", "Step", "simulate_step"]


@dataclass(frozen=True)
class Batch:
    """What goes through the model at once.

    Attributes:
        rows: how many there are.
        length: tokens of each, padding among them.
        targets: tokens that are predicted.
    """

    rows: int
    length: int
    targets: int


@dataclass(frozen=True)
class Step:
    """What forward and backward add to weights and optimizer.

    Attributes:
        peak_bytes: at most, gradients among them.
        again_bytes: the same where gradients of an earlier batch are there already.
        gradient_bytes: what is left for the optimizer.
    """

    peak_bytes: int
    again_bytes: int
    gradient_bytes: int


@dataclass
class _Ledger:
    """Storages as they come and go."""

    events: list[tuple[int, int]] = field(default_factory=list)
    live: dict[int, int] = field(default_factory=dict)
    known: set[int] = field(default_factory=set)

    def enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self.live or key in self.known:
            return
        size = storage.nbytes()
        self.live[key] = size
        self.events.append((key, size))
        weakref.finalize(storage, self.leave, key).atexit = False

    def leave(self, key: int) -> None:
        self.events.append((key, -self.live.pop(key)))

    def peak(self, without: frozenset[int] = frozenset()) -> int:
        """The most bytes at a time, leaving some storages out."""
        most = now = 0
        for key, change in self.events:
            if key not in without:
                now += change
                most = max(most, now)
        return most


def simulate_step(model: Any, batch: Batch, *, device: str, mixed: str = "no") -> Step:
    """Runs a model on the meta device forward and backward.

    Args:
        model: prepared for training, on the meta device; its gradients are left there.
        batch: what goes through it.
        device: whose kernels there are: `cpu` or `cuda`.
        mixed: the data type of mixed precision, or `no`.
    """
    import torch

    ledger = _Ledger()
    tensors = [*model.parameters(), *model.buffers()]
    storages = [tensor.untyped_storage() for tensor in tensors]  # as long as they live, their ids are theirs
    ledger.known = {id(storage) for storage in storages}
    model.train()
    ids = torch.zeros(batch.rows, batch.length, dtype=torch.long, device="meta")
    with ExitStack() as stack:
        stack.enter_context(_kernels(device))
        stack.enter_context(_watch(ledger))
        _backward(_forward(model, ids, batch.targets, mixed))
    gradients = [tensor.grad.untyped_storage() for tensor in tensors if tensor.grad is not None]
    kept = {id(storage): storage.nbytes() for storage in gradients}
    gradient_bytes = sum(kept.values())
    return Step(ledger.peak(), ledger.peak(frozenset(kept)) + gradient_bytes, gradient_bytes)


def _forward(model: Any, ids: Tensor, targets: int, mixed: str) -> Any:
    """The loss, as the trainer computes it."""
    from stages.training.loss import takes_positions, token_loss

    rows, length = ids.shape
    most = min(-(-targets // rows), length)  # of a row: a choice of positions would depend on content
    if takes_positions(model):
        logits = model(input_ids=ids, logits_to_keep=most, use_cache=False).logits
    else:
        logits = model(input_ids=ids, use_cache=False).logits
    if logits.dim() == 2:  # a classifier's
        return logits.float().sum()
    logits = logits[:, -most:]
    if mixed != "no":
        logits = logits.float()  # as accelerate hands them over
    return token_loss(logits.flatten(0, 1), ids[:, -most:].flatten(), None, rows * most)


def _backward(loss: Tensor) -> None:
    """`loss.backward()`, which would leave the modes: what is computed again on the way back would not be seen."""
    import torch
    from torch.autograd.graph import _engine_run_backward

    _engine_run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def _watch(ledger: _Ledger) -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            import torch

            if func is torch.ops.aten._local_scalar_dense.default:
                return torch.ones((), dtype=args[0].dtype).item()  # "are all rows whole?": yes
            made = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(made):
                if isinstance(tensor, torch.Tensor):
                    ledger.enter(tensor)
            return made

    return Watch()  # type: ignore[no-untyped-call]


def _kernels(device: str) -> Any:
    """What a device does in one kernel and the meta device in many: attention, and dropout's mask on a GPU."""
    import torch
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            out = query.new_empty((*query.shape[:-1], value.shape[-1]))
            ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
            return out

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            query, key, value, *_ = ctx.saved_tensors
            return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)

    class Kernels(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is functional.scaled_dot_product_attention:
                given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
                return Attention.apply(given["query"], given["key"], given["value"])  # type: ignore[no-untyped-call]
            if func is functional.dropout and device == "cuda":
                given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
                if given.get("training", True) and given.get("p", 0.5) > 0:
                    return torch.native_dropout(given["input"], given.get("p", 0.5), True)[0]
            return func(*args, **kwargs)

    return Kernels()
