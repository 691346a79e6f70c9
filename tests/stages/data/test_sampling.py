from __future__ import annotations

import numpy as np
import pytest

from stages.data.sampling import sample, split
from stages.errors import DataError


@pytest.mark.parametrize(
    ("num_rows", "count", "expected"),
    [
        (5, None, [0, 1, 2, 3, 4]),
        (5, 3, [1, 4, 2]),
        (5, 5, [0, 1, 2, 3, 4]),
        (5, 12, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 1, 4]),
        (1, 2, [0, 0]),
    ],
)
def test_sampling_draws_what_swift_draws(num_rows: int, count: int | None, expected: list[int]) -> None:
    assert sample(num_rows, count, np.random.RandomState(42)).tolist() == expected


def test_one_random_state_goes_on_from_dataset_to_dataset() -> None:
    random = np.random.RandomState(42)
    assert [sample(5, 3, random).tolist(), sample(5, 3, random).tolist()] == [[1, 4, 2], [3, 1, 2]]


@pytest.mark.parametrize(
    ("num_rows", "count", "ratio", "num_train", "num_validation"),
    [
        (100, None, 0.0, 100, 0),
        (100, None, 0.01, 99, 1),
        (100, None, 0.1, 90, 10),
        (100, 50, 0.1, 45, 5),
        (100, 250, 0.1, 240, 10),
        (2, None, 0.01, 1, 1),
        (100, 30, 1.0, 0, 30),
    ],
)
def test_a_split_has_the_sizes_that_swift_gives_it(
    num_rows: int, count: int | None, ratio: float, num_train: int, num_validation: int
) -> None:
    train, validation = split(num_rows, count, ratio, np.random.RandomState(42), "rows")
    assert (len(train), len(validation)) == (num_train, num_validation)
    assert not set(train.tolist()) & set(validation.tolist())
    again = split(num_rows, count, ratio, np.random.RandomState(42), "rows")
    assert (train.tolist(), validation.tolist()) == (again[0].tolist(), again[1].tolist())


def test_another_seed_holds_out_other_rows() -> None:
    _, one = split(100, None, 0.1, np.random.RandomState(42), "rows")
    _, other = split(100, None, 0.1, np.random.RandomState(43), "rows")
    assert one.tolist() != other.tolist()


def test_the_split_is_that_of_the_datasets_library() -> None:
    import datasets

    seed = np.random.RandomState(42).randint(0, np.iinfo(np.int32).max)
    theirs = datasets.Dataset.from_dict({"row": list(range(50))}).train_test_split(test_size=5, seed=seed)
    train, validation = split(50, None, 0.1, np.random.RandomState(42), "rows")
    assert validation.tolist() == theirs["test"]["row"]
    assert train.tolist() == theirs["train"]["row"]


@pytest.mark.parametrize(
    ("num_rows", "count", "ratio", "message"),
    [
        (1, None, 0.01, "rows gives 1 row.*split_dataset_ratio 0"),
        (100, 1, 0.01, "rows gives 1 row"),
        (10, 11, 1.0, "rows has 10 rows: 11 cannot be validated on"),
    ],
)
def test_too_few_rows_are_refused(num_rows: int, count: int | None, ratio: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split(num_rows, count, ratio, np.random.RandomState(42), "rows")
