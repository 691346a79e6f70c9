"""Which rows each of several processes trains on: `dealt(rows)`, in the order of `EvenSampler(order, 8)`.

accelerate deals batches out in turn: with 2 processes and 4 rows each, one step takes the same 8 rows as one process
with 8. Where the rows of a pass do not fill the last step, accelerate would begin with the first rows again. Here rows
without labels stand in for those that are missing: they add nothing to a loss or a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from stages.errors import ArgumentsError
from stages.training import group
from stages.training.batches import OF_TEXT
from stages.training.rows import IGNORED

__all__ = ["DealtRows", "EvenSampler", "check_dealing", "dealt", "shuffled"]

OURS = ("split_batches", "dispatch_batches", "even_batches", "use_seedable_sampler")
"""Settings of accelerate that say how rows are dealt out."""


def check_dealing(arguments: Any) -> None:
    """Refuses what several processes would not agree upon.

    Raises:
        ArgumentsError: there is such a setting.
    """
    many = f"`--nproc_per_node {group.size()}`"
    for name in OURS:
        if name in (arguments.accelerator_config or {}):
            raise ArgumentsError(
                f"{many} deals rows out so that a step has the same ones as in one process: take {name} out of "
                "`--accelerator_config`"
            )
    if arguments.auto_find_batch_size:
        raise ArgumentsError(f"{many}: each process would find another batch size: drop `--auto_find_batch_size`")
    if arguments.use_galore and arguments.galore_optim_per_parameter:
        raise ArgumentsError(
            f"{many}: gradients of other processes come after `--galore_optim_per_parameter` has stepped: drop one"
        )
    if arguments.train_sampling_strategy == "batch_rebalance":
        raise ArgumentsError(
            f"{many} does not go with `--train_sampling_strategy batch_rebalance`, which deals rows out in a way of "
            "its own: group_by_length does"
        )


def dealt(rows: Any) -> Any:
    """The rows as several processes take them; as they are, where there is one, or where they come as a stream."""
    return DealtRows(rows) if group.size() > 1 and hasattr(rows, "__len__") else rows


class DealtRows:
    """Rows by their number; any number above is a row without labels."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        """Number of real rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Row `index`, or one that counts for nothing."""
        item: Mapping[str, Any] = self.rows[index] if index < len(self.rows) else self._blank
        return item

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        lengths: list[int] = self.rows.lengths
        return lengths

    @cached_property
    def _blank(self) -> dict[str, Any]:
        """The first row, whose labels are taken away; of text, two tokens are enough."""
        row = dict(self.rows[0])
        if "label" in row:  # of a class
            return {"input_ids": row["input_ids"][:2], "label": IGNORED}
        if OF_TEXT.issuperset(row):
            row = {name: value[:2] for name, value in row.items()}
        row["labels"] = row["labels"].copy() if hasattr(row["labels"], "copy") else row["labels"].clone()
        row["labels"][:] = IGNORED
        return row


class EvenSampler:
    """An order of rows, filled up with numbers above them to whole steps; or cut, if an unfilled step is dropped."""

    def __init__(self, order: Any, num_rows: int, rows_a_step: int, *, drop_last: bool = False) -> None:
        """Nothing is drawn yet.

        Args:
            order: a sampler, the same in all processes.
            num_rows: how many numbers it gives.
            rows_a_step: rows that all processes together take at once.
            drop_last: whether to cut.
        """
        self.order, self.num_rows = order, num_rows
        missing = -num_rows % rows_a_step
        self.length = num_rows - (num_rows % rows_a_step) if drop_last else num_rows + missing

    def __len__(self) -> int:
        """Numbers that are given."""
        return self.length

    def __iter__(self) -> Iterator[int]:
        """Those of the order first."""
        for done, number in enumerate(self.order):
            if done < self.length:  # but the order is drawn to its end: it counts its own passes
                yield number
        yield from range(self.num_rows, self.length)

    def set_epoch(self, epoch: int) -> None:
        """Passed on."""
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(epoch)


def shuffled(rows: Any, seed: int) -> Any:
    """The order that accelerate makes of the Trainer's in one process."""
    from accelerate.data_loader import SeedableRandomSampler

    return SeedableRandomSampler(rows, data_seed=seed)
