"""Rows that have a class: `read_class({"messages": …, "label": 2}, num_labels=3) == 2`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.data.rows.values import RowError
from stages.data.templates.rendered import Rendered, Template
from stages.errors import DataError

__all__ = ["check_classes", "classified_text", "read_class"]

ROWS_A_BATCH = 65536


def read_class(row: Mapping[str, Any], num_labels: int) -> int:
    """The number of a row's class.

    Raises:
        RowError: it has none.
        DataError: there are not so many classes: to leave the row out would be to train something else.
    """
    label = row.get("label")
    if label is None:
        raise RowError(f"it has no label, a number from 0 to {num_labels - 1}")
    if not 0 <= label < num_labels:
        raise DataError(_no_such_class(label, num_labels))
    return int(label)


def classified_text(template: Template, row: Mapping[str, Any]) -> Rendered:
    """What is classified, of which nothing is learnt: the prompt for an answer, or a conversation that has one.

    Raises:
        RowError: the template cannot write it.
    """
    messages = row["messages"]
    if messages[-1]["role"] == "assistant":
        return Rendered(template.render(row).text, [])
    return Rendered(template.prompt({**row, "messages": [*messages, {"role": "assistant", "content": ""}]}), [])


def check_classes(paths: Iterable[Path], num_labels: int) -> None:
    """Looks at the column `label` of files of standard rows, before any of them is encoded.

    Raises:
        DataError: there is none, or a row has a class that there is not.
    """
    for path in paths:
        before = 0
        for labels in _labels(path, num_labels):
            for at, label in enumerate(labels, start=before + 1):
                if label is not None and not 0 <= label < num_labels:
                    raise DataError(f"{path.name} row {at}: {_no_such_class(label, num_labels)}")
            before += len(labels)


def _labels(path: Path, num_labels: int) -> Iterator[list[int | None]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        if "label" not in file.schema_arrow.names:
            raise DataError(f"`--num_labels {num_labels}` needs rows with a label, and those of {path.name} have none")
        for batch in file.iter_batches(ROWS_A_BATCH, columns=["label"]):
            yield batch.column(0).to_pylist()


def _no_such_class(label: int, num_labels: int) -> str:
    return (
        f"its label is {label}, and `--num_labels {num_labels}` knows 0 to {num_labels - 1}: "
        "raise it, or correct the row"
    )
