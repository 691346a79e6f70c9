"""Rows that were put together by the tokenize stage: `read_packs(Path("tokens/train_packs.arrow"), rows)`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import DataError, ModelError
from stages.training.batches import join
from stages.training.rows import TokenRows, open_batches, views

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PackedRows", "check_isolation", "read_packs"]

LEAK = 1e-4
"""A difference of logits, as a share of the largest one, that rounding alone does not make."""


class PackedRows:
    """Packs by their number, each made of its rows when it is asked for."""

    def __init__(self, rows: TokenRows, packs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> None:
        """Nothing is copied.

        Args:
            rows: all rows.
            packs: the row numbers of packs laid end to end, and where each pack begins and the last one ends.
        """
        self.rows = rows
        self._packs = packs
        self._firsts = [0, *accumulate(len(starts) - 1 for _, starts in packs)]

    def __len__(self) -> int:
        """Number of packs."""
        return self._firsts[-1]

    def members(self, index: int) -> list[int]:
        """The numbers of the rows in pack `index`."""
        if not 0 <= index < self._firsts[-1]:
            raise IndexError(index)
        part = bisect_right(self._firsts, index) - 1
        numbers, starts = self._packs[part]
        at = index - self._firsts[part]
        members: list[int] = numbers[starts[at] : starts[at + 1]].tolist()
        return members

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Pack `index` as one sequence: see `join`."""
        return join([self.rows[row] for row in self.members(index)])

    @property
    def lengths(self) -> list[int]:
        """Tokens of each pack."""
        lengths = self.rows.lengths
        return [sum(lengths[row] for row in self.members(index)) for index in range(len(self))]

    @property
    def num_tokens(self) -> int:
        """Tokens of all packs."""
        return self.rows.num_tokens

    @property
    def num_labels(self) -> int:
        """Tokens that have a label."""
        return self.rows.num_labels


def read_packs(path: Path, rows: TokenRows) -> PackedRows:
    """Opens a file that the tokenize stage has written.

    Args:
        path: an Arrow stream with the column `rows`: the numbers of the rows in each pack, lists of int32.
        rows: what the numbers stand for.

    Raises:
        DataError: the packs are not made of these rows, each of them once.
    """
    import numpy as np

    packs = [views(batch, "rows", "int32", path.name) for batch in open_batches(path, "packs")]
    packed = np.zeros(len(rows), dtype=bool)
    num_packed = 0
    for numbers, starts in packs:
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(rows):
            raise DataError(f"{path.name} names the row {numbers.max()}, and there are {len(rows)}: tokenize again")
        if (starts[1:] == starts[:-1]).any():
            raise DataError(f"{path.name} has a pack without rows: tokenize again")
        packed[numbers] = True
        num_packed += len(numbers)
    if num_packed != len(rows) or not packed.all():
        raise DataError(f"{path.name} does not hold each of the {len(rows)} rows once: tokenize again")
    return PackedRows(rows, packs)


def check_isolation(model: Any) -> None:
    """Refuses a model whose attention reaches over the border between two rows of a pack.

    Two packs that differ in their first row only must give the same logits in the second one. Most models of
    transformers look at the positions to find the border; one that does not would learn from the wrong context
    without any error.

    Raises:
        ModelError: it does.
    """
    import torch

    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]] * 2, device=model.device)
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [4, 3, 2, 1, 5, 6, 7, 8]], device=model.device)
    training = model.training
    model.eval()
    with torch.inference_mode():
        # One after the other: rows of one batch would be computed alike even where they are not.
        one, other = (
            model(input_ids=ids[i : i + 1], position_ids=positions[i : i + 1], use_cache=False).logits[0, 4:].float()
            for i in (0, 1)
        )
    model.train(training)
    leak = float((one - other).abs().max())
    if leak > LEAK * float(one.abs().max()):
        raise ModelError(
            f"this model cannot be trained on packed rows: its attention reaches into the row before (logits differ "
            f"by {leak:.2g}). Drop `--packing`"
        )
