"""Encodes a file of standard rows: `encode_file(Path("train.parquet"), Path("train.arrow"), encoder, context)`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import DataError, Interrupted

if TYPE_CHECKING:
    from stages.context import Context
    from stages.data.encode import Dropped, RowEncoder
    from stages.data.token_file import TokenWriter

__all__ = ["NAMED_DROPS", "EncodedFile", "encode_file"]

NAMED_DROPS = 10


@dataclass
class Drops:
    """Keeps account of the rows of a file that are left out.

    Attributes:
        name: of the file.
        strict: whether the first row that cannot be rendered is an error.
        counts: how often each kind.
        reasons: of the first ten.
    """

    name: str
    strict: bool
    counts: dict[str, int] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def take(self, dropped: Sequence[Dropped]) -> None:
        """Counts.

        Raises:
            DataError: with `strict`, a row that cannot be rendered.
        """
        for one in dropped:
            self.counts[one.kind] = self.counts.get(one.kind, 0) + 1
            if self.strict and one.reason:
                raise DataError(f"{self.name} row {one.row}: {one.reason}")
            if len(self.reasons) < NAMED_DROPS:
                self.reasons.append(f"{self.name} row {one.row}: {one.reason or one.kind}")


@dataclass(frozen=True)
class EncodedFile:
    """What came of a file.

    Attributes:
        lengths: tokens of each row.
        num_trained: tokens that have a label.
        num_truncated: rows that were longer.
        drops: rows that were left out.
    """

    lengths: Sequence[int]
    num_trained: int
    num_truncated: int
    drops: Drops

    def metrics(self, split: str) -> dict[str, Any]:
        """Counts, under names that begin with the split."""
        metrics: dict[str, Any] = {
            f"{split}_rows": len(self.lengths),
            f"{split}_tokens": sum(self.lengths),
            f"{split}_trained_tokens": self.num_trained,
            f"{split}_truncated": self.num_truncated,
            f"{split}_dropped": sum(self.drops.counts.values()),
        }
        if self.lengths:
            metrics[f"{split}_longest"] = max(self.lengths)
            metrics[f"{split}_mean_length"] = round(sum(self.lengths) / len(self.lengths), 2)
        for reason, count in sorted(self.drops.counts.items()):
            metrics[f"{split}_dropped_{reason.replace(' ', '_')}"] = count
        if self.drops.reasons:
            metrics[f"{split}_first_dropped"] = "\n".join(self.drops.reasons)
        return metrics


def encode_file(
    source: Path,
    target: Path,
    encoder: RowEncoder,
    context: Context,
    *,
    strict: bool = False,
    num_threads: int = 1,
    look: Callable[[int, Mapping[str, Any]], None] | None = None,
) -> EncodedFile:
    """Writes the tokens of a file's rows, see `stages.data.token_file`; no file if no row is left.

    Args:
        source: Parquet of standard rows.
        target: the Arrow file to write.
        encoder: does each row.
        context: progress, the first reasons in the log.
        strict: whether a row that cannot be rendered is an error.
        num_threads: that encode side by side.
        look: is shown each row with its number before it is written.

    Raises:
        DataError: no standard rows; with `strict`, a row that cannot be rendered.
        Interrupted: the run was told to stop.
    """
    from stages.data.codec import IdsDiffer

    try:
        return _encode(source, target, encoder, context, strict, num_threads, look)
    except IdsDiffer as error:
        context.logger.warning("%s: %s; all rows are encoded anew, by tokenizers", source.name, error)
        encoder = replace(encoder, codec=encoder.codec.safe)
        return _encode(source, target, encoder, context, strict, num_threads, look)


def _encode(
    source: Path,
    target: Path,
    encoder: RowEncoder,
    context: Context,
    strict: bool,
    num_threads: int,
    look: Callable[[int, Mapping[str, Any]], None] | None,
) -> EncodedFile:
    from stages.data.encode import encode_all
    from stages.data.standard_rows import columns_of
    from stages.data.token_file import TokenWriter

    columns = columns_of(source)
    drops = Drops(source.name, strict)
    target.unlink(missing_ok=True)
    writer = TokenWriter(
        target,
        weighted=encoder.weighted,
        preference="rejected_response" in columns and encoder.num_labels is None,
        labelled="label" in columns,
        classified=encoder.num_labels is not None,
    )
    with writer:
        for batch in encode_all(encoder, _rows(source, context), num_threads=num_threads, look=look):
            drops.take(batch.dropped)
            writer.write(batch)
    for reason in drops.reasons:
        context.logger.warning("dropped %s", reason)
    return _result(writer, drops)


def _result(writer: TokenWriter, drops: Drops) -> EncodedFile:
    return EncodedFile(writer.lengths, writer.num_trained, writer.num_truncated, drops)


def _rows(source: Path, context: Context) -> Iterator[list[dict[str, Any]]]:
    import pyarrow.parquet as pq

    from stages.data.standard_rows import read_standard_rows

    total, done = pq.ParquetFile(source).metadata.num_rows, 0
    for rows in read_standard_rows(source):
        if context.stop_requested():
            raise Interrupted(f"stopped after {done} of {total} rows")
        yield rows
        done += len(rows)
        context.reporter.progress(done, total, f"{source.stem}: {done} of {total} rows")
