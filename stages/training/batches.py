"""Rows become batches: `collate([rows[3], rows[7]])`; on a CPU the batch is cut again: `split_by_length(batch)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.training.rows import IGNORED

__all__ = ["OF_TEXT", "collate", "join", "split_by_length"]

OF_TEXT = {"input_ids", "labels", "loss_scale", "position_ids", "place"}
"""What rows of text have; others have tensors of pixels too."""
PADDING_WORTH_A_CALL = 16
"""On a CPU a call of the model costs about as much as this many tokens (SmolLM2-135M, two cores)."""


def join(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows end to end as one sequence, in which positions start again with every row: they do not see each other.

    A row's first token would be predicted from the row before: its label is IGNORED. There must be no attention mask
    and no cache, else transformers does not look at the positions, and rows leak into each other without any error.
    """
    import numpy as np

    lengths = [len(row["input_ids"]) for row in rows]
    labels = np.concatenate([row["labels"] for row in rows])
    labels[np.cumsum([0, *lengths[:-1]])] = IGNORED
    joined = {
        "input_ids": np.concatenate([row["input_ids"] for row in rows]),
        "labels": labels,
        "position_ids": np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
    }
    if any("loss_scale" in row for row in rows):
        scales = [row.get("loss_scale", np.ones(length, np.float32)) for row, length in zip(rows, lengths, strict=True)]
        joined["loss_scale"] = np.concatenate(scales)
    return joined


def collate(rows: Sequence[Mapping[str, Any]], multiple: int = 1) -> dict[str, Any]:
    """A batch, padded on the right to its longest row, or to a multiple that is not shorter.

    It has `input_ids`, `labels`, `attention_mask` where rows differ in length, `loss_scale` where one has weights.
    Without a mask, attention takes the faster causal kernel. Padding has the id 0; nothing sees it.

    Rows with media have more: see `multimodal.collate_media`.
    Packs have `position_ids` and never a mask: what pads them is one more row, whose positions start again.
    Rows of a stream have a `place`; the batch's is that of its last row.
    With a multiple there is no mask: devices that share a row take none, and what follows a row is seen by no label.
    """
    import torch

    if any(not OF_TEXT.issuperset(row) for row in rows):
        return _collate_media(rows)
    lengths = [len(row["input_ids"]) for row in rows]
    packed = "position_ids" in rows[0]
    shape = (len(rows), -(-max(lengths) // multiple) * multiple)
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED, dtype=torch.long),
        "position_ids" if packed else "attention_mask": torch.zeros(shape, dtype=torch.long),
    }
    if any("loss_scale" in row for row in rows):
        batch["loss_scale"] = torch.ones(shape, dtype=torch.float32)
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        batch["input_ids"][index, :length] = torch.tensor(row["input_ids"])
        batch["labels"][index, :length] = torch.tensor(row["labels"])
        if packed:
            batch["position_ids"][index, :length] = torch.tensor(row["position_ids"])
            batch["position_ids"][index, length:] = torch.arange(shape[1] - length)
        else:
            batch["attention_mask"][index, :length] = 1
        if "loss_scale" in row:
            batch["loss_scale"][index, :length] = torch.tensor(row["loss_scale"])
    if not packed and (multiple > 1 or len(set(lengths)) == 1):
        del batch["attention_mask"]
    if "place" in rows[-1]:
        batch["place"] = torch.tensor(rows[-1]["place"])
    return batch


def _collate_media(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    import torch

    from stages.training.multimodal import collate_media

    batch = collate_media([{name: row[name] for name in row if name != "place"} for row in rows])
    if "place" in rows[-1]:
        batch["place"] = torch.tensor(rows[-1]["place"])
    return batch


def split_by_length(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same rows as batches with hardly any padding, for devices that are as fast on one row as on many.

    Alpaca's rows, four at a time, are padding by almost a half. A batch that holds more than tokens stays whole.
    """
    if "attention_mask" not in batch:
        return [dict(batch)]
    shape = batch["input_ids"].shape
    if any(tensor.shape != shape for tensor in batch.values()):
        return [dict(batch)]
    lengths: list[int] = batch["attention_mask"].sum(dim=1).tolist()
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if groups and lengths[groups[-1][0]] - lengths[index] <= PADDING_WORTH_A_CALL:
            groups[-1].append(index)
        else:
            groups.append([index])
    return [_part(batch, group, lengths) for group in groups]


def _part(batch: Mapping[str, Any], group: list[int], lengths: list[int]) -> dict[str, Any]:
    longest = lengths[group[0]]
    part = {name: tensor[group, :longest] for name, tensor in batch.items()}
    if all(lengths[index] == longest for index in group):
        del part["attention_mask"]
    return part
