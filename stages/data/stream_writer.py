"""Makes the artifact of a stream: `StreamWriter(out).add(spec, place, skip=5)`, then `.finish(…)`.

Local files are linked into it, so that any worker can read the rows when it needs them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stages.data.files import everything
from stages.data.opened import format_of
from stages.data.readers import count_rows
from stages.data.sources import Workplace, files_of, hub_folder, hub_parts
from stages.data.spec import DatasetSpec, Reading
from stages.data.stream import PLUGINS, StreamFormat, StreamPart, StreamSource
from stages.errors import DataError

__all__ = ["StreamWriter"]

LARGEST_JSON_BYTES = 64_000_000


@dataclass
class StreamWriter:
    """Collects the datasets of a stream.

    Attributes:
        out: the artifact's folder.
        num_rows: how many rows the files have, as far as that is known; None once a hub's dataset is among them.
    """

    out: Path
    sources: list[StreamSource] = field(default_factory=list)
    num_rows: int | None = 0

    def add(self, spec: DatasetSpec, place: Workplace, skip: int) -> None:
        """Adds a dataset.

        Args:
            spec: what was asked for; `sample` says how many rows are read.
            place: where it is.
            skip: how many rows at its start are held out.

        Raises:
            DataError: it is not there, malformed as a whole, or has no more rows than are held out.
            StageFailed: a hub or the package index cannot be reached.
        """
        parts = self._hub(spec, place) if spec.location.hub == "hf" else self._files(spec, place)
        counts = [part.rows for part in parts]
        total = None if None in counts else sum(count or 0 for count in counts)
        if total is not None:
            total = min(total, spec.sample or total)
            if total <= skip:
                raise DataError(f"{spec} has {total} rows: none is left to train on when {skip} are held out")
        self.num_rows = None if total is None or self.num_rows is None else self.num_rows + total - skip
        self.sources.append(StreamSource(parts, skip, spec.sample))

    def finish(self, told: StreamFormat, plugins: Path | None) -> None:
        """Writes what says how the rows are read, and the plugins that do so."""
        told.write(self.out)
        if plugins is not None:
            shutil.copytree(plugins, self.out / PLUGINS)

    def _hub(self, spec: DatasetSpec, place: Workplace) -> list[StreamPart]:
        return [
            StreamPart(
                one.label,
                hub="hf",
                name=one.name,
                commit=one.commit,
                subset=one.part.subset,
                split=one.part.split,
                columns=one.part.reading.columns,
                messages=one.part.reading.messages,
                plugin=one.part.plugin,
            )
            for one in hub_parts(spec, place)
        ]

    def _files(self, spec: DatasetSpec, place: Workplace) -> list[StreamPart]:
        """Data files, and what lies beside them: rows may name pictures there."""
        target = self.out / "files" / str(len(self.sources))
        parts, linked = [], set()
        root = hub_folder(spec, place) if spec.location.hub == "ms" else None
        for part, label, file in files_of(spec, place, root):
            _check_size(file)
            base = file.parents[len(Path(label).parts) - 1]
            if base not in linked:
                linked.add(base)
                for one in everything(base) if spec.location.hub != "pypi" else [file]:
                    _link(one, target / one.relative_to(base))
            name = (target / label).relative_to(self.out).as_posix()
            reading: Reading = part.reading
            parts.append(
                StreamPart(
                    label,
                    name,
                    count_rows(file),
                    columns=reading.columns,
                    messages=reading.messages,
                    plugin=part.plugin,
                )
            )
        return parts


def _check_size(file: Path) -> None:
    if format_of(file) == ".json" and file.stat().st_size > LARGEST_JSON_BYTES:
        raise DataError(
            f"{file.name} is one JSON text of {file.stat().st_size / 1e6:.0f} MB, which cannot be streamed: "
            "write a row a line and name it .jsonl, or drop `--streaming`"
        )


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def heads(specs: Sequence[DatasetSpec], ratio: float) -> list[int]:
    """How many rows at the start of each dataset are held out: SWIFT's rule, which needs `#count`.

    Raises:
        DataError: a dataset without a count, if rows are to be held out.
    """
    if ratio == 0:
        return [0] * len(specs)
    for spec in specs:
        if spec.sample is None:
            raise DataError(
                f"`--streaming` with `--split_dataset_ratio {ratio}` needs how many rows to take, as {spec}#10000: "
                "or give `--val_dataset`"
            )
    return [int((spec.sample or 0) * ratio) for spec in specs]
