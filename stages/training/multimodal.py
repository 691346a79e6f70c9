"""What training on rows with images needs beside rows of text: `load_class(config)`, `collate_media(rows)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.data.processor import TOKEN_LEVEL
from stages.data.rows import RowError
from stages.data.rows.columns import MEDIA
from stages.errors import DataError, ModelError
from stages.training.rows import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

    from stages.data.media_encode import MediaEncoder
    from stages.training.lazy import StandardRows
    from stages.training.usable import Usable

__all__ = ["MediaRows", "check_batches", "check_collation", "collate_media", "language_part", "load_class"]

ROWS_COMPARED = 4
"""So many rows are batched both ways."""


def load_class(config: Any) -> Any:
    """The Auto class of transformers for a configuration: of models that see, hear or read.

    A model whose configuration fits several classes is what its files say that it is.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

    named = (getattr(config, "architectures", None) or [""])[0]
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        known = auto._model_mapping.get(type(config), None)
        names = {one.__name__ for one in (known if isinstance(known, tuple) else (known,)) if one is not None}
        if named in names or (names and type(config) not in AutoModelForCausalLM._model_mapping):
            return auto
    return AutoModelForCausalLM


class MediaRows:
    """Rows with media whose lengths are known: each is encoded once to learn it, and again when it is asked for.

    Attributes:
        lengths: tokens of each row.
        num_tokens: of all rows.
    """

    def __init__(self, rows: StandardRows, usable: Usable) -> None:
        """Encodes every row, and leaves out those that cannot be used.

        Raises:
            DataError: none is left.
        """
        self._rows, self._usable = rows, usable
        found = ((number, usable(rows[number], number + 1)) for number in range(len(rows)))
        kept = [(number, len(item["input_ids"])) for number, item in found if item is not None]
        self._numbers = [number for number, _ in kept]
        self.lengths = [length for _, length in kept]
        self.num_tokens = sum(self.lengths)
        if not kept:
            raise DataError(f"no row of {usable.name} is left: all are too long, or lack their media")

    def __len__(self) -> int:
        """Number of rows that can be used."""
        return len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row `index` as `collate_media` takes it."""
        number = self._numbers[index]
        item = self._usable(self._rows[number], number + 1)
        assert item is not None, number
        return item


def collate_media(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch: tokens padded on the right, media of all rows one after the other.

    `check_collation` holds it against what the model's processor makes of the same rows.
    """
    import torch

    length = max(len(row["input_ids"]) for row in rows)
    batch: dict[str, Any] = {
        "input_ids": torch.stack([_padded(row["input_ids"], length, 0).long() for row in rows]),
        "labels": torch.stack([_padded(row["labels"], length, IGNORED).long() for row in rows]),
        "attention_mask": torch.stack([_padded(torch.ones(len(row["input_ids"])).long(), length, 0) for row in rows]),
    }
    if any("loss_scale" in row for row in rows):
        scales = [row.get("loss_scale", torch.ones(len(row["input_ids"]))) for row in rows]
        batch["loss_scale"] = torch.stack([_padded(scale, length, 1).float() for scale in scales])
    names = {name for row in rows for name in row} - {"input_ids", "labels", "loss_scale"}
    for name in sorted(names):
        if name in TOKEN_LEVEL:
            batch[name] = torch.cat([_padded_tokens(row.get(name), row, length) for row in rows])
        else:
            batch[name] = _joined([row[name] for row in rows if name in row])
    return batch


def check_collation(encoder: MediaEncoder, rows: Sequence[Mapping[str, Any]]) -> None:
    """Holds a batch of `collate_media` against the one that the processor makes of the same rows.

    Args:
        encoder: of these rows.
        rows: standard rows; those without media, and those that cannot be used, are left out.

    Raises:
        ModelError: they differ.
    """
    import torch

    encoder = replace(encoder, max_length=None)
    written, items = [], []
    for row in rows:
        if not any(row.get(column) for column in MEDIA):
            continue
        try:
            tokens, text = encoder.encode(row), encoder.rendered(row)
        except RowError:
            continue
        written.append(text)
        items.append({"input_ids": tokens.input_ids, "labels": tokens.labels, **tokens.tensors})
    if len(items) < 2 or len({text.add_special_tokens for text in written}) > 1:
        return
    theirs = encoder.processor.batch(
        [text.text for text in written],
        [text.media for text in written],
        add_special_tokens=written[0].add_special_tokens,
    )
    ours = collate_media(items)
    ours["input_ids"] = torch.where(ours["attention_mask"] == 1, ours["input_ids"], theirs["input_ids"])
    for name in sorted({*theirs, *ours} - {"labels"}):
        there = theirs.get(name)
        here = ours.get(name)
        if there is None or here is None or there.shape != here.shape or not torch.equal(there, here.to(there.dtype)):
            raise ModelError(
                f"the model's processor, {encoder.processor.name}, puts {name} of several rows together in a way of "
                "its own: train with `--per_device_train_batch_size 1`"
            )


def check_batches(encoder: MediaEncoder, tokens: Path) -> None:
    """`check_collation` of the first rows of a tokens artifact, unless they are a stream's.

    Raises:
        ModelError: as there.
    """
    from itertools import islice

    from stages.data.standard_rows import read_standard_rows

    path = tokens / "train.parquet"
    if not path.is_file():
        return
    first = (row for rows in read_standard_rows(path) for row in rows if any(row.get(name) for name in MEDIA))
    check_collation(encoder, list(islice(first, ROWS_COMPARED)))


def language_part(model: Any) -> str | None:
    """The path of the language model within one that also sees or hears; None for a model that only reads."""
    config = getattr(model, "config", None)
    if not any(getattr(config, f"{sense}_config", None) is not None for sense in ("vision", "audio", "thinker")):
        return None
    decoder = model.get_decoder()
    return next((path for path, module in model.named_modules() if module is decoder), None)


def _padded(values: Any, length: int, filler: int) -> Tensor:
    import torch
    from torch.nn.functional import pad

    return pad(torch.as_tensor(values), (0, length - len(values)), value=filler)


def _padded_tokens(values: Any, row: Mapping[str, Any], length: int) -> Tensor:
    """What a row has for each of its tokens, as [1, length, …]; zeros where it has nothing."""
    import torch

    if values is None:
        return torch.zeros((1, length), dtype=torch.long)
    whole: Tensor = values.new_zeros((1, length, *values.shape[2:]))
    whole[:, : values.shape[1]] = values
    return whole


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """One after the other; where their other sides differ, each in the corner of one as large as the largest."""
    import torch

    if len({tensor.dim() for tensor in tensors}) > 1:
        raise ModelError(f"media of several rows have {sorted({tensor.dim() for tensor in tensors})} dimensions")
    largest = [max(sides) for sides in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        whole = tensor
        if list(tensor.shape[1:]) != largest:
            whole = tensor.new_zeros((tensor.shape[0], *largest))
            whole[tuple(slice(side) for side in tensor.shape)] = tensor
        padded.append(whole)
    return torch.cat(padded)
