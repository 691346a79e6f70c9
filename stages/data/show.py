"""A row as a person sees it: what the model reads, and what of it is trained: `tokens_row(folder, 0, tokenizer)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.data.encode import NOT_TRAINED
from stages.errors import ArgumentsError, DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

__all__ = ["Shown", "Stretch", "dataset_row", "tokens_row"]


@dataclass(frozen=True)
class Stretch:
    """Tokens that follow each other and weigh the same.

    Attributes:
        text: as the tokenizer decodes them.
        weight: 0 where nothing is trained.
        num_tokens: how many.
    """

    text: str
    weight: float
    num_tokens: int


@dataclass(frozen=True)
class Shown:
    """A row.

    Attributes:
        row: its number in the file, from 0.
        num_rows: of the file.
        stretches: the row from its beginning to its end.
        rejected: the same with its rejected answer, if it has one.
        source_row: its number in the dataset that was tokenized, from 0; None where that is `row`.
    """

    row: int
    num_rows: int
    stretches: Sequence[Stretch]
    rejected: Sequence[Stretch] | None = None
    source_row: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""

        def plain(stretches: Sequence[Stretch]) -> list[dict[str, Any]]:
            return [{"text": one.text, "weight": one.weight, "tokens": one.num_tokens} for one in stretches]

        value = {"row": self.row, "num_rows": self.num_rows, "stretches": plain(self.stretches)}
        if self.rejected is not None:
            value["rejected"] = plain(self.rejected)
        if self.source_row is not None:
            value["source_row"] = self.source_row
        return value


def tokens_row(folder: Path, row: int, model: Path) -> Shown:
    """A row of a tokens artifact.

    Args:
        folder: the artifact.
        row: its number in `train.arrow` (or in the rows that are tokenized later), from 0.
        model: the folder of the model whose tokenizer made the tokens.

    Raises:
        ArgumentsError: there is no such row.
        DataError: the tokens are those of a stream, or the row is one that training leaves out.
    """
    from stages.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model).tokenizer
    if (folder / "train.arrow").is_file():
        return _eager(folder / "train.arrow", row, tokenizer)
    if not (folder / "train.parquet").is_file():
        raise DataError("these tokens are made of a stream while it is read: there is no row to show")
    return _lazy(folder, row, model, tokenizer)


def dataset_row(folder: Path, row: int) -> tuple[dict[str, Any], int]:
    """A standard row of a dataset artifact, and how many there are.

    Raises:
        ArgumentsError: there is no such row.
        DataError: the dataset is read as a stream.
    """
    import pyarrow.parquet as pq

    from stages.data.standard_rows import read_standard_rows

    path = folder / "train.parquet"
    if not path.is_file():
        raise DataError("this dataset is read as a stream: there is no row to show")
    num_rows = pq.ParquetFile(path).metadata.num_rows
    _check(row, num_rows)
    passed = 0
    for rows in read_standard_rows(path):
        if row < passed + len(rows):
            return rows[row - passed], num_rows
        passed += len(rows)
    raise AssertionError(row)


def _eager(path: Path, row: int, tokenizer: Tokenizer) -> Shown:
    import pyarrow as pa

    with pa.ipc.open_stream(pa.memory_map(str(path))) as reader:
        table = reader.read_all()
    _check(row, table.num_rows)
    values = table.slice(row, 1).to_pylist()[0]
    rejected = None
    if values.get("rejected_input_ids") is not None:
        rejected = _stretches(values["rejected_input_ids"], values["rejected_labels"], None, tokenizer)
    labels = values.get("labels") or [NOT_TRAINED] * len(values["input_ids"])  # a row with a class has none
    chosen = _stretches(values["input_ids"], labels, values.get("loss_scale"), tokenizer)
    return Shown(row, table.num_rows, chosen, rejected, values.get("row"))


def _lazy(folder: Path, row: int, model: Path, tokenizer: Tokenizer) -> Shown:
    from stages.data.encode import EncoderSettings, open_encoder
    from stages.data.plugins import load_plugins
    from stages.data.rows.columns import MEDIA

    if (folder / "plugins").is_dir():
        load_plugins(folder / "plugins")
    values, num_rows = dataset_row(folder, row)
    settings = EncoderSettings.from_json((folder / "encoder.json").read_text(encoding="utf-8"))
    if media := [name for name in MEDIA if values.get(name)]:
        raise DataError(
            f"row {row} has {' and '.join(media)}, which only become tokens in training: show the dataset's row"
        )
    encoded = open_encoder(model, settings).encode_row(values)
    if isinstance(encoded, str):
        raise DataError(f"row {row} is left out of training: {encoded}")
    rejected = None
    if encoded.rejected_input_ids is not None and encoded.rejected_labels is not None:
        rejected = _stretches(encoded.rejected_input_ids, encoded.rejected_labels, None, tokenizer)
    chosen = _stretches(encoded.input_ids, encoded.labels, encoded.loss_scale, tokenizer)
    return Shown(row, num_rows, chosen, rejected)


def _check(row: int, num_rows: int) -> None:
    if not 0 <= row < num_rows:
        raise ArgumentsError(f"`--row {row}`: there are {num_rows} rows, 0 to {num_rows - 1}")


def _stretches(
    ids: Sequence[int] | NDArray[np.int32],
    labels: Sequence[int] | NDArray[np.int32],
    weights: Sequence[float] | NDArray[np.float32] | None,
    tokenizer: Tokenizer,
) -> list[Stretch]:
    each = [
        0.0 if label == NOT_TRAINED else 1.0 if weights is None else float(weights[place])
        for place, label in enumerate(labels)
    ]
    found, start = [], 0
    for place in range(1, len(each) + 1):
        if place == len(each) or each[place] != each[start]:
            text = tokenizer.decode([int(token) for token in ids[start:place]], skip_special_tokens=False)
            found.append(Stretch(text, each[start], place - start))
            start = place
    return found
