"""GaLore's projections of a gradient to low rank: `find_projection(gradient, 128, "std")`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Projection", "find_projection", "project", "project_back"]

Projection = tuple["Tensor | None", "Tensor | None"]
"""The sides that are projected: left [rows, rank] and right [rank, columns], with orthonormal columns and rows."""


def find_projection(gradient: Tensor, rank: int, kind: str) -> Projection:
    """Its first singular vectors.

    Args:
        gradient: a matrix.
        rank: how many; fewer where the matrix has fewer.
        kind: left, right, full (both), std (the shorter side) or reverse_std (the longer one).
    """
    import torch

    left, _, right = torch.linalg.svd(gradient.float(), full_matrices=False)
    tall = gradient.shape[0] >= gradient.shape[1]
    sides = {"left": "l", "right": "r", "full": "lr", "std": "r" if tall else "l", "reverse_std": "l" if tall else "r"}
    return (
        left[:, :rank].to(gradient.dtype).contiguous() if "l" in sides[kind] else None,
        right[:rank].to(gradient.dtype).contiguous() if "r" in sides[kind] else None,
    )


def project(gradient: Tensor, sides: Projection) -> Tensor:
    """To low rank."""
    left, right = sides
    low = gradient if left is None else left.t() @ gradient
    return low if right is None else low @ right.t()


def project_back(low: Tensor, sides: Projection) -> Tensor:
    """To the shape of the gradient."""
    left, right = sides
    high = low if left is None else left @ low
    return high if right is None else high @ right
