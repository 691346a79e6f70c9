"""Tokens artifacts whose rows are encoded while training goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.data.encode import EncoderSettings

Rows = Sequence[tuple[str, str]]
LONG = "world " * 300
"""More tokens than the tiny model takes."""


def questions(count: int) -> list[tuple[str, str]]:
    """Questions and answers of several lengths, no two of them equal."""
    words = ["capital", "France", "Paris", "is", "what", "hello", "world", "red", "green", "blue", "sky", "sea", "sum"]
    made = []
    for number in range(count):
        said = [words[(number * step + step) % len(words)] for step in range(1, 2 + number * 7 % 11)]
        made.append((f"what is {number}?", f"{' '.join(said)} {number}."))
    return made


def messages(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write_lazy(folder: Path, rows: Rows, validation: Rows = (), **settings: Any) -> Path:
    """As tokenize leaves them with `lazy_tokenize`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    (folder / "encoder.json").write_text(EncoderSettings(**{"max_length": 128, **settings}).to_json())
    for name, some in (("train", rows), ("validation", validation)):
        if some:
            table = pa.table({"messages": [messages(*row) for row in some]})
            pq.write_table(table, folder / f"{name}.parquet", row_group_size=7)
    return folder


def write_stream(folder: Path, rows: Rows, **settings: Any) -> Path:
    """As tokenize leaves them with `streaming`."""
    (folder / "files").mkdir(parents=True)
    (folder / "encoder.json").write_text(EncoderSettings(**{"max_length": 128, **settings}).to_json())
    lines = "".join(json.dumps({"messages": messages(*row)}) + "\n" for row in rows)
    (folder / "files" / "rows.jsonl").write_text(lines)
    part: Mapping[str, Any] = {"label": "rows.jsonl", "file": "files/rows.jsonl", "rows": len(rows)}
    (folder / "stream.json").write_text(json.dumps({"sources": [{"parts": [part]}], "seed": 42}))
    return folder


def write_eager(folder: Path, rows: Rows, validation: Rows, model: Path, **settings: Any) -> Path:
    """The same rows encoded beforehand."""
    from stages.data.encode import open_encoder
    from tests.stages.training.tokens import write_arrow

    folder.mkdir(parents=True)
    encoder = open_encoder(model, EncoderSettings(**{"max_length": 128, **settings}))
    for name, some in (("train", rows), ("validation", validation)):
        encoded = [encoder.encode_row({"messages": messages(*row)}) for row in some]
        kept = [one for one in encoded if not isinstance(one, str)]
        if kept:
            columns = {"input_ids": [one.input_ids for one in kept], "labels": [one.labels for one in kept]}
            write_arrow(folder / f"{name}.arrow", columns)
    return folder
