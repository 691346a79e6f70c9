"""Rows become batches: `collate([rows[3], rows[7]])`; on a CPU the batch is cut again: `split_by_length(batch)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.training.rows import IGNORED

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = ["OF_TEXT", "collate", "join", "padded", "split_by_length"]

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
    import numpy as np
    import torch

    if any(not OF_TEXT.issuperset(row) for row in rows):
        return _collate_media(rows)
    lengths = [len(row["input_ids"]) for row in rows]
    longest = -(-max(lengths) // multiple) * multiple
    # Rows are put in place by numpy: of views that must not be written to, torch makes a copy first.
    batch = {
        "input_ids": padded([row["input_ids"] for row in rows], longest, 0, np.int64),
        "labels": padded([row["labels"] for row in rows], longest, IGNORED, np.int64),
    }
    if "position_ids" in rows[0]:
        fillers = [np.arange(longest - length) for length in lengths]
        whole = [np.concatenate([row["position_ids"], more]) for row, more in zip(rows, fillers, strict=True)]
        batch["position_ids"] = padded(whole, longest, 0, np.int64)
    elif multiple == 1 and len(set(lengths)) > 1:
        batch["attention_mask"] = padded([np.ones(length) for length in lengths], longest, 0, np.int64)
    if any("loss_scale" in row for row in rows):
        batch["loss_scale"] = padded([row.get("loss_scale", ()) for row in rows], longest, 1, np.float32)
    if "place" in rows[-1]:
        batch["place"] = torch.tensor(rows[-1]["place"])
    return batch


def padded(rows: Sequence[Any], length: int, filler: int, kind: type[np.generic]) -> Tensor:
    """Rows of different lengths as one tensor, each filled up on the right to a length."""
    import numpy as np
    import torch

    whole = np.full((len(rows), length), filler, dtype=kind)
    for index, row in enumerate(rows):
        whole[index, : len(row)] = row
    return torch.from_numpy(whole)


def _collate_media(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    import torch

    from stages.training.multimodal import collate_media

    batch = collate_media([{name: row[name] for name in row if name != "place"} for row in rows])
    if "place" in rows[-1]:
        batch["place"] = torch.tensor(rows[-1]["place"])
    return batch


def split_by_length(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same rows as batches with hardly any padding, for devices that are as fast on one row as on many.

    Alpaca's rows, four at a time, are padding by almost a half. A batch that holds more than tokens, and
    numbers of rows, stays whole.
    """
    if "attention_mask" not in batch:
        return [dict(batch)]
    shape = batch["input_ids"].shape
    if any(tensor.shape not in (shape, shape[:1]) for tensor in batch.values()):
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
    part = {name: tensor[group, :longest] if tensor.dim() > 1 else tensor[group] for name, tensor in batch.items()}
    if all(lengths[index] == longest for index in group):
        del part["attention_mask"]
    return part
