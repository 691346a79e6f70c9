"""Which rows are trained on and which are held out, as SWIFT draws them: `split(1000, None, 0.01, RandomState(42))`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Indices = NDArray[np.int64]

__all__ = ["sample", "split"]


def sample(num_rows: int, count: int | None, random: np.random.RandomState) -> Indices:
    """`count` of `num_rows` rows: all of them as often as they fit, in order, then a draw without repetition."""
    import numpy as np

    if count is None:
        return np.arange(num_rows)
    repeated = np.tile(np.arange(num_rows), count // num_rows)
    return np.concatenate([repeated, random.permutation(num_rows)[: count % num_rows]])


def split(
    num_rows: int, count: int | None, ratio: float, random: np.random.RandomState, name: str
) -> tuple[Indices, Indices]:
    """The rows to train on and those to validate on; no row is in both.

    Args:
        num_rows: of the dataset, more than 0.
        count: how many rows to take altogether; all if None.
        ratio: share that is held out, at least one row; 0 holds out nothing, 1 everything.
        random: consumed across the datasets of one run, in their order.
        name: of the dataset, for the message.

    Raises:
        DataError: nothing would be left to train on, or validation rows would be repeated.
    """
    import numpy as np

    nothing = np.arange(0)
    if ratio == 0:
        return sample(num_rows, count, random), nothing
    if ratio == 1:
        if count is not None and count > num_rows:
            raise DataError(f"{name} has {num_rows} rows: {count} cannot be validated on without repeating some")
        return nothing, sample(num_rows, count, random)
    total = num_rows if count is None else count
    num_validation = max(int(min(num_rows, total) * ratio), 1)
    if min(total, num_rows) - num_validation <= 0:
        raise DataError(
            f"{name} gives {min(total, num_rows)} row(s): none is left to train on when {num_validation} is held out. "
            "Give `--split_dataset_ratio 0`, or a larger dataset"
        )
    # The generator and order of datasets.Dataset.train_test_split.
    seed = random.randint(0, np.iinfo(np.int32).max)
    shuffled = np.random.default_rng(seed).permutation(num_rows)
    held_out, rest = shuffled[:num_validation], shuffled[num_validation:]
    return rest[sample(len(rest), total - num_validation, random)], held_out
