"""Batches: padding, weights, packs; and batches without padding."""

from __future__ import annotations

from typing import Any

import pytest

from stages.training.batches import collate, join, split_by_length
from stages.training.rows import IGNORED

X = IGNORED


def row(ids: list[int], labels: list[int], scale: list[float] | None = None) -> dict[str, Any]:
    import numpy as np

    found = {"input_ids": np.array(ids, np.int32), "labels": np.array(labels, np.int32)}
    return found if scale is None else found | {"loss_scale": np.array(scale, np.float32)}


def batch_of(*lengths: int) -> dict[str, Any]:
    return collate([row([length] * length, [length] * length) for length in lengths])


def test_collate_pads_to_the_longest_row() -> None:
    batch = batch_of(3, 1)
    assert batch.keys() == {"input_ids", "labels", "attention_mask"}
    assert batch["input_ids"].tolist() == [[3, 3, 3], [1, 0, 0]]
    assert batch["labels"].tolist() == [[3, 3, 3], [1, X, X]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch_of(4, 4).keys() == {"input_ids", "labels"}


def test_collate_to_a_multiple() -> None:
    batch = collate([row([1, 2, 3, 4, 5], [X, 2, 3, 4, 5]), row([6], [X])], multiple=4)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 0, 0, 0], [6] + [0] * 7]
    assert batch["labels"].tolist() == [[X, 2, 3, 4, 5, X, X, X], [X] * 8]
    assert "attention_mask" not in batch


def test_collate_weights() -> None:
    """A row without weights beside one with them has 1 everywhere."""
    batch = collate([row([1, 2, 3], [X, 2, 3], [0, 2, 0.5]), row([4, 5], [X, 5])])
    assert batch["loss_scale"].tolist() == [[0, 2, 0.5], [1, 1, 1]]
    assert batch["labels"].tolist() == [[X, 2, 3], [X, 5, X]]


def test_join() -> None:
    pack = join([row([1, 2, 3], [1, 2, 3]), row([4], [4]), row([5, 6], [X, 6])])
    assert {name: values.tolist() for name, values in pack.items()} == {
        "input_ids": [1, 2, 3, 4, 5, 6],
        "labels": [X, 2, 3, X, X, 6],
        "position_ids": [0, 1, 2, 0, 0, 1],
    }
    pack = join([row([1, 2], [X, 2], [0, 3]), row([5, 6], [X, 6])])
    assert pack["loss_scale"].tolist() == [0, 3, 1, 1]


def test_collate_packs() -> None:
    """Without a mask; padding is one more row."""
    batch = collate([join([row([1, 2], [X, 2]), row([3, 4], [X, 4])]), join([row([5], [X])])])
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[1, 2, 3, 4], [5, 0, 0, 0]],
        "labels": [[X, 2, X, 4], [X, X, X, X]],
        "position_ids": [[0, 1, 0, 1], [0, 0, 1, 2]],
    }
    assert split_by_length(batch) == [batch]


def test_place_of_the_last_row() -> None:
    batch = collate([row([1], [X]) | {"place": (7, 0, 0)}, row([2], [X]) | {"place": (9, 1, 0)}])
    assert batch["place"].tolist() == [9, 1, 0]


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ((30, 30, 30), [[30, 30, 30]]),
        ((10, 200, 100), [[200], [100], [10]]),
        ((90, 210, 200, 100), [[210, 200], [100, 90]]),
        ((7,), [[7]]),
    ],
)
def test_split_by_length(lengths: tuple[int, ...], groups: list[list[int]]) -> None:
    """Every row is there once, whole; rows of about one length stay together."""
    parts = split_by_length(batch_of(*lengths))
    found = [[int((labels != X).sum()) for labels in part["labels"]] for part in parts]
    assert found == groups
    for part, group in zip(parts, groups, strict=True):
        assert part["input_ids"].shape == (len(group), max(group))
        assert ("attention_mask" in part) == (len(set(group)) > 1)


def test_split_takes_weights_along_and_leaves_pictures_together() -> None:
    import torch

    batch = collate([row([1] * 40, [1] * 40, [2.0] * 40), row([5], [5], [3.0])])
    parts = split_by_length(batch)
    assert [part["loss_scale"].tolist() for part in parts] == [[[2.0] * 40], [[3.0]]]
    batch["pixel_values"] = torch.zeros(3, 4)
    assert split_by_length(batch) == [batch]
