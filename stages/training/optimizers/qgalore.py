"""Q-GaLore (arXiv 2407.08296): GaLore with 8-bit AdamW and projections in few bits, renewed lazily.

`make_qgalore(groups, lr=1e-5, betas=(0.9, 0.999), eps=1e-8)`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stages.training.optimizers.projection import find_projection, project, project_back

if TYPE_CHECKING:
    from torch import Tensor

    from stages.training.optimizers.projection import Projection

__all__ = ["dequantize", "make_qgalore", "quantize"]

SIDES = ("left", "right")


def make_qgalore(groups: Sequence[dict[str, Any]], **settings: Any) -> Any:
    """An AdamW whose moments have 8 bits; for groups with a `rank` it sees the projected gradient.

    Args:
        groups: of parameters; those with a `rank` have `update_proj_gap`, `scale`, `proj_quant`, `proj_bits`,
            `proj_group_size`, `cos_threshold`, `gamma_proj` and `queue_size`, too.
        settings: lr, betas, eps.
    """
    from bitsandbytes.optim import AdamW8bit

    class QGaloreAdamW(_QGalore, AdamW8bit):  # type: ignore[misc]
        pass

    made = QGaloreAdamW(groups, **settings)
    kept = {f"{side}_{part}" for side in SIDES for part in ("scales", "zeros")} | {"former"}
    made.non_castable_tensor_keys = made.non_castable_tensor_keys | kept
    return made


class _QGalore:
    """What stands between bitsandbytes' optimizer and a matrix: for the time of a step it is one of low rank."""

    state: Any

    def init_state(self, group: dict[str, Any], p: Any, gindex: int, pindex: int) -> None:
        """Of a projected matrix when its shape in low rank is known."""
        if "rank" not in group:
            super().init_state(group, p, gindex, pindex)  # type: ignore[misc]

    def update_step(self, group: dict[str, Any], p: Any, gindex: int, pindex: int) -> None:
        """The step of bitsandbytes, from zero in low rank; its result is projected back."""
        import torch

        if "rank" not in group:
            super().update_step(group, p, gindex, pindex)  # type: ignore[misc]
            return
        weight, gradient, state = p.data, p.grad, self.state[p]
        sides = _current(state, group, gradient)
        p.grad = None
        p.data = torch.zeros_like(project(gradient, sides))
        p.grad = project(gradient, sides).contiguous()
        if "state1" not in state:
            super().init_state(group, p, gindex, pindex)  # type: ignore[misc]
        super().update_step(group, p, gindex, pindex)  # type: ignore[misc]
        change = p.data
        p.grad = None
        p.data = weight
        p.grad = gradient
        p.add_(project_back(change, sides), alpha=group["scale"])
        if group["weight_decay"] > 0:
            p.add_(p, alpha=-group["lr"] * group["weight_decay"])


def _current(state: dict[str, Any], group: dict[str, Any], gradient: Tensor) -> Projection:
    """The projection that is kept, after it was renewed if its time has come."""
    gap = state.setdefault("gap", group["update_proj_gap"])
    if state.get("step", 0) % gap == 0:
        _renew(state, group, gradient)
    left, right = (_kept(state, side, gradient) for side in SIDES)
    return left, right


def _renew(state: dict[str, Any], group: dict[str, Any], gradient: Tensor) -> None:
    """A new projection. Where the first singular vectors of the last few hardly differ, it is kept for longer.

    The sign of such a vector means nothing; similarity is taken without it.
    """
    import torch

    sides = dict(zip(SIDES, find_projection(gradient, group["rank"], "std"), strict=True))
    left, right = sides["left"], sides["right"]
    first = right[0] if right is not None else left[:, 0] if left is not None else None
    assert first is not None, "std projects one side"
    if "former" in state:
        alike = float(torch.nn.functional.cosine_similarity(state["former"].float(), first.float(), dim=0).abs())
        state["alike"] = [*state.get("alike", []), alike][-group["queue_size"] :]
        full = len(state["alike"]) == group["queue_size"]
        if full and sum(state["alike"]) / group["queue_size"] >= group["cos_threshold"]:
            state["gap"] = state["gap"] * group["gamma_proj"]
    state["former"] = first.clone()
    for side, matrix in sides.items():
        if matrix is not None and group["proj_quant"]:
            codes = quantize(matrix, group["proj_bits"], group["proj_group_size"])
            state[f"{side}_codes"], state[f"{side}_scales"], state[f"{side}_zeros"] = codes
            state[f"{side}_shape"] = tuple(matrix.shape)
        elif matrix is not None:
            state[side] = matrix


def _kept(state: dict[str, Any], side: str, like: Tensor) -> Tensor | None:
    if f"{side}_codes" in state:
        codes = (state[f"{side}_{part}"] for part in ("codes", "scales", "zeros"))
        return dequantize(*codes).reshape(-1)[: _size(state[f"{side}_shape"])].reshape(state[f"{side}_shape"]).to(like)
    matrix: Tensor | None = state.get(side)
    return matrix


def _size(shape: Sequence[int]) -> int:
    rows, columns = shape
    return rows * columns


def quantize(matrix: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Whole numbers of so many bits, one a byte, with a scale and a zero for each group of values.

    Returns:
        codes [groups, group_size], scales [groups, 1], zeros [groups, 1]; a last group that is not full repeats the
        last value, a matrix smaller than a group is one.
    """
    import torch

    flat = matrix.float().reshape(-1)
    group_size = min(group_size, flat.numel())
    missing = -flat.numel() % group_size
    groups = torch.cat([flat, flat[-1:].expand(missing)]).reshape(-1, group_size)
    low, high = groups.amin(dim=1, keepdim=True), groups.amax(dim=1, keepdim=True)
    scales = (high - low).clamp(min=1e-5) / (2**bits - 1)
    zeros = (-(low / scales).round()).clamp(0, 2**bits - 1)
    codes = ((groups / scales).round() + zeros).clamp(0, 2**bits - 1)
    return codes.to(torch.uint8), scales, zeros


def dequantize(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """The values that codes stand for, [groups, group_size]."""
    return (codes.float() - zeros) * scales
