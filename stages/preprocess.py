"""Reads datasets of any common format into standard rows and splits off some for validation.

`python -m stages preprocess --dataset alpaca.jsonl#500 --split_dataset_ratio 0.1`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.arguments import PreprocessArguments
from stages.context import Context
from stages.data.collect import Collector
from stages.data.dataset_info import DatasetMeta, Registry, read_dataset_info
from stages.data.files import data_files
from stages.data.media import MediaFinder
from stages.data.media_state import media_state
from stages.data.plugins import hand_in_plugins, load_plugins
from stages.data.row_maker import RowMaker
from stages.data.self_cognition import SelfCognition
from stages.data.sources import Workplace
from stages.data.spec import DatasetSpec, parse_dataset
from stages.errors import ArgumentsError, DataError
from stages.sources.location import Location
from stages.stage import Input, Inputs, Metrics, Prepared, Stage

if TYPE_CHECKING:
    from stages.data.sampling import Indices
    from stages.data.table import StoredRows

__all__ = ["STAGE", "preprocess"]

ARGUMENTS = ("dataset", "val_dataset")


def prepare(arguments: PreprocessArguments) -> Prepared[PreprocessArguments]:
    """Hands local paths in as inputs, of which only number and sample count are kept, and pins revisions on hubs.

    Of registered datasets, only those that are used stand in the arguments afterwards, as one JSON text.

    Raises:
        ArgumentsError: a plugin that raises, a malformed `custom_dataset_info`.
        DataError: a path, an id or a revision that does not exist, a file of an unknown format.
        StageFailed: a hub cannot be reached.
    """
    update: dict[str, Any] = {"use_hf": False}
    inputs: dict[str, Path | tuple[Path, ...]] = {}
    update["custom_register_path"], plugins = hand_in_plugins(arguments.custom_register_path)
    _hand_in(inputs, "plugins", plugins)
    registry = _registry(arguments.custom_dataset_info, load_plugins(plugins))
    used: list[str] = []
    folders: list[str] = []
    local: list[Path] = []
    for name in ARGUMENTS:
        paths: list[Path] = []
        specs = []
        for text in getattr(arguments, name):
            spec = parse_dataset(text, use_hf=arguments.use_hf, registry=registry)
            pinned = _pinned(spec, paths, registry, name)
            entry = registry.of(spec.location, name)
            if entry is not None and (told := entry.to_json(pinned.location, name)):
                used.append(json.dumps(told, ensure_ascii=False, sort_keys=True))
            specs.append(str(pinned))
        update[name] = specs
        _hand_in(inputs, name, paths)
        local += paths
        folders += [str((path if path.is_dir() else path.parent).resolve()) for path in paths]
    update["media_dirs"] = _media_dirs(arguments.media_dirs, folders)
    if local and arguments.media_state is None:
        starts = list(update["media_dirs"])
        starts = starts * len(local) if len(starts) == 1 else starts
        pairs = [(path, Path(start).expanduser()) for path, start in zip(local, starts, strict=True) if path.is_file()]
        update["media_state"] = media_state(pairs)
    update["custom_dataset_info"] = [f"[{', '.join(dict.fromkeys(used))}]"] if used else []
    if plugins and all(json.loads(told).get("plugin") is None for told in used):  # no function of theirs reads rows
        update["custom_register_path"] = []
        del inputs["plugins"]
    return Prepared(arguments.model_copy(update=update), inputs)


def _hand_in(inputs: dict[str, Path | tuple[Path, ...]], name: str, paths: Sequence[Path]) -> None:
    if paths:
        inputs[name] = tuple(paths) if len(paths) > 1 else paths[0]


def _media_dirs(given: Sequence[str], own: Sequence[str]) -> Sequence[str]:
    """Where relative paths of media start: where it was said, else in the folder of each data file."""
    for folder in given if own else ():  # on a worker they were another machine's
        if not Path(folder).expanduser().is_dir():
            raise ArgumentsError(f"`--media_dirs {folder}` is no folder")
    if given and len(given) not in (1, len(own)) and own:
        raise ArgumentsError(
            f"`--media_dirs` names {len(given)} folders for {len(own)} local datasets: name one, or all"
        )
    return given or own


def _registry(infos: Sequence[str], registered: Sequence[DatasetMeta]) -> Registry:
    """Datasets of plugins and of `--custom_dataset_info`."""
    entries = [
        replace(entry, plugin=number) if entry.preprocess_func else entry for number, entry in enumerate(registered)
    ]
    return Registry([*entries, *(entry for info in infos for entry in read_dataset_info(info))])


def _used(arguments: PreprocessArguments, registered: Sequence[DatasetMeta]) -> Registry:
    """What `prepare` wrote of the datasets in use; those of plugins have their function back."""
    entries = [entry for info in arguments.custom_dataset_info for entry in read_dataset_info(info)]
    return Registry(
        entry if entry.plugin is None else replace(entry, preprocess_func=registered[entry.plugin].preprocess_func)
        for entry in entries
    )


def _pinned(spec: DatasetSpec, paths: list[Path], registry: Registry, argument: str) -> DatasetSpec:
    """The dataset without what may move; a local path is added to `paths`."""
    parts = registry.parts(spec, argument)
    if spec.location.hub == "path":
        path = Path(spec.location.name).expanduser()
        for part in parts:
            data_files(path, part.subset, part.split)
        paths.append(path)
        return replace(spec, location=Location("local", str(len(paths) - 1)))
    if spec.location.hub in ("hf", "ms"):
        from stages.sources.hub import resolve_commit

        commit = resolve_commit(spec.location.hub, "dataset", spec.location.name, spec.revision)
        return replace(spec, revision=commit)
    return spec


def preprocess(arguments: PreprocessArguments, inputs: Inputs, out: Path, context: Context) -> Metrics:
    """Writes `train.parquet`, and `validation.parquet` if rows are held out.

    Args:
        arguments: the datasets as `prepare` left them.
        inputs: `dataset` and `val_dataset`: local files, as `0/…`, `1/…` if there are several; `plugins`: Python files.
        out: the folder for both files.
        context: `dropped.jsonl` among its attachments names the rows that were dropped, with file, row and reason.

    Raises:
        DataError: no usable row in a file, a malformed row with `strict`, too few rows to split.
        StageFailed: a hub or the package index cannot be reached.
    """
    registered = load_plugins(inputs["plugins"]) if "plugins" in inputs else []
    reader = _Reader(arguments, inputs, context, _used(arguments, registered))
    return _stream(reader, out) if arguments.streaming else _tables(reader, out)


@dataclass(frozen=True)
class _Reader:
    """What both ways of reading need: whole tables and streams."""

    arguments: PreprocessArguments
    inputs: Inputs
    context: Context
    registry: Registry

    def collector(self) -> Collector:
        """Reads rows, and keeps account of those that are no use."""
        names = SelfCognition(self.arguments.model_name, self.arguments.model_author)
        media = MediaFinder(self.context.scratch / "media")
        maker = RowMaker(self.arguments.data_seed, names=names, media=media)
        return Collector(self.arguments.strict, maker, self.context)

    def specs(self, name: str) -> list[DatasetSpec]:
        """The datasets of one argument; rows that were handed in without any argument are one dataset."""
        specs = [parse_dataset(text, use_hf=False) for text in getattr(self.arguments, name)]
        return specs or ([DatasetSpec(Location("local", "0"))] if name in self.inputs else [])

    def place(self, name: str) -> Workplace:
        """Where the datasets of one argument are."""
        arguments, context = self.arguments, self.context
        num_local = {one: sum(spec.location.hub == "local" for spec in self.specs(one)) for one in ARGUMENTS}
        folders = arguments.media_dirs
        if len(folders) > 1:  # one for each local path, as `prepare` has written them
            folders = folders[: num_local["dataset"]] if name == "dataset" else folders[num_local["dataset"] :]
        scratch = context.scratch / name
        scratch.mkdir(exist_ok=True)
        return Workplace(
            handed_in=self.inputs.get(name),
            num_handed_in=num_local[name],
            scratch=scratch,
            num_proc=arguments.dataset_num_proc,
            download_mode=arguments.download_mode,
            use_cache=arguments.load_from_cache_file,
            registry=self.registry,
            argument=name,
            folders=[Path(folder) for folder in folders * (num_local[name] if len(folders) == 1 else 1)],
            secrets={"hf": context.secret("HF_TOKEN"), "ms": context.secret("MODELSCOPE_API_TOKEN")},
            progress=context.reporter.progress,
        )


def _tables(reader: _Reader, out: Path) -> Metrics:
    import numpy as np

    from stages.data.sampling import split
    from stages.data.table import write_parquet

    arguments, collector = reader.arguments, reader.collector()
    train: list[tuple[StoredRows, Indices]] = []
    validation: list[tuple[StoredRows, Indices]] = []
    for name, ratio in (("dataset", arguments.split_dataset_ratio), ("val_dataset", 1.0)):
        random = np.random.RandomState(arguments.data_seed)
        for dataset in collector.read(reader.specs(name), reader.place(name)):
            chosen, held_out = split(dataset.num_rows, dataset.spec.sample, ratio, random, dataset.title)
            train.append((dataset.rows, chosen))
            validation.append((dataset.rows, held_out))
    num_train = write_parquet(train, out / "train.parquet")
    if not num_train:
        raise DataError("no row is left to train on: give `--dataset`, and a `--split_dataset_ratio` below 1")
    num_validation = write_parquet(validation, out / "validation.parquet")
    metrics = {"train_rows": num_train, "validation_rows": num_validation, **collector.finish()}
    reader.context.logger.info(
        "%d rows to train on, %d to validate on, %d dropped", num_train, num_validation, collector.num_dropped
    )
    return metrics


def _stream(reader: _Reader, out: Path) -> Metrics:
    """`stream.json` and the files it reads; rows to validate on are read now."""
    import numpy as np

    from stages.data.sampling import split
    from stages.data.stream import StreamFormat
    from stages.data.stream_writer import StreamWriter, heads
    from stages.data.table import write_parquet

    arguments, collector, writer = reader.arguments, reader.collector(), StreamWriter(out)
    validation: list[tuple[StoredRows, Indices]] = []
    specs, place = reader.specs("dataset"), reader.place("dataset")
    for number, (spec, head) in enumerate(zip(specs, heads(specs, arguments.split_dataset_ratio), strict=True)):
        writer.add(spec, place, head)
        if head:
            scratch = place.scratch / f"head-{number}"
            scratch.mkdir(exist_ok=True)
            held_out = next(collector.read([spec], replace(place, scratch=scratch, limit=head)))
            validation.append((held_out.rows, np.arange(held_out.num_rows)))
    if not writer.sources:
        raise DataError("no row is left to train on: give `--dataset`")
    random = np.random.RandomState(arguments.data_seed)
    for dataset in collector.read(reader.specs("val_dataset"), reader.place("val_dataset")):
        _, chosen = split(dataset.num_rows, dataset.spec.sample, 1.0, random, dataset.title)
        validation.append((dataset.rows, chosen))
    num_validation = write_parquet(validation, out / "validation.parquet")
    told = StreamFormat(
        writer.sources,
        arguments.data_seed,
        arguments.strict,
        arguments.model_name,
        arguments.model_author,
        STAGE.version,
    )
    writer.finish(told, reader.inputs.get("plugins"))
    metrics: Metrics = {"validation_rows": num_validation, **(collector.finish() if validation else {})}
    if writer.num_rows is not None:
        metrics["raw_rows"] = writer.num_rows
    reader.context.logger.info(
        "%s rows to stream, %d to validate on", "?" if writer.num_rows is None else writer.num_rows, num_validation
    )
    return metrics


STAGE = Stage(
    name="preprocess",
    version=2,
    arguments=PreprocessArguments,
    inputs={
        "dataset": Input(kinds=("files",), required=False, help="local files with rows to train on"),
        "val_dataset": Input(kinds=("files",), required=False, help="local files with rows to validate on"),
        "plugins": Input(kinds=("files",), required=False, help="Python files of custom_register_path"),
    },
    output="dataset",
    function=preprocess,
    libraries=("pyarrow",),
    prepare=prepare,
)
