"""Reads datasets of any common format into standard rows and splits off some for validation.

`python -m stages preprocess --dataset alpaca.jsonl#500 --split_dataset_ratio 0.1`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.arguments import PreprocessArguments
from stages.context import Context
from stages.data.collect import Collector
from stages.data.readers import data_files
from stages.data.rows import Standardizer
from stages.data.sources import Workplace
from stages.data.spec import DatasetSpec, parse_dataset
from stages.errors import DataError
from stages.sources.location import Location
from stages.stage import Input, Inputs, Metrics, Prepared, Stage

if TYPE_CHECKING:
    from stages.data.sampling import Indices
    from stages.data.table import StoredRows

__all__ = ["STAGE", "preprocess"]


def prepare(arguments: PreprocessArguments) -> Prepared[PreprocessArguments]:
    """Hands local paths in as inputs, of which only number and sample count are kept, and pins revisions on hubs.

    Raises:
        DataError: a path, an id or a revision that does not exist, a file of an unknown format.
        StageFailed: a hub cannot be reached.
    """
    update: dict[str, Any] = {"use_hf": False}
    inputs: dict[str, Path | tuple[Path, ...]] = {}
    for name in ("dataset", "val_dataset"):
        specs = [parse_dataset(text, use_hf=arguments.use_hf) for text in getattr(arguments, name)]
        paths: list[Path] = []
        update[name] = [str(_pinned(spec, paths)) for spec in specs]
        if paths:
            inputs[name] = tuple(paths) if len(paths) > 1 else paths[0]
    return Prepared(arguments.model_copy(update=update), inputs)


def _pinned(spec: DatasetSpec, paths: list[Path]) -> DatasetSpec:
    """The dataset without what may move; a local path is added to `paths`."""
    if spec.location.hub == "path":
        path = Path(spec.location.name).expanduser()
        data_files(path)
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
        inputs: `dataset` and `val_dataset`: local files, as `0/…`, `1/…` if there are several.
        out: the folder for both files.
        context: `dropped.jsonl` among its attachments names the rows that were dropped, with file, row and reason.

    Raises:
        DataError: no usable row in a file, a malformed row with `strict`, too few rows to split.
        StageFailed: a hub or the package index cannot be reached.
    """
    import numpy as np

    from stages.data.sampling import split
    from stages.data.table import write_parquet

    collector = Collector(arguments.strict, Standardizer(arguments.data_seed), context)
    train: list[tuple[StoredRows, Indices]] = []
    validation: list[tuple[StoredRows, Indices]] = []
    for name, ratio in (("dataset", arguments.split_dataset_ratio), ("val_dataset", 1.0)):
        random = np.random.RandomState(arguments.data_seed)
        specs = _specs(arguments, inputs, name)
        for dataset in collector.read(specs, _workplace(arguments, inputs, name, specs, context)):
            chosen, held_out = split(dataset.num_rows, dataset.spec.sample, ratio, random, dataset.title)
            train.append((dataset.rows, chosen))
            validation.append((dataset.rows, held_out))
    num_train = write_parquet(train, out / "train.parquet")
    if not num_train:
        raise DataError("no row is left to train on: give `--dataset`, and a `--split_dataset_ratio` below 1")
    num_validation = write_parquet(validation, out / "validation.parquet")
    metrics = {"train_rows": num_train, "validation_rows": num_validation, **collector.metrics()}
    context.logger.info(
        "%d rows to train on, %d to validate on, %d dropped", num_train, num_validation, collector.num_dropped
    )
    return metrics


def _specs(arguments: PreprocessArguments, inputs: Inputs, name: str) -> list[DatasetSpec]:
    """The datasets of one argument; rows that were handed in without any argument are one dataset."""
    specs = [parse_dataset(text, use_hf=False) for text in getattr(arguments, name)]
    return specs or ([DatasetSpec(Location("local", "0"))] if name in inputs else [])


def _workplace(
    arguments: PreprocessArguments, inputs: Inputs, name: str, specs: Sequence[DatasetSpec], context: Context
) -> Workplace:
    scratch = context.scratch / name
    scratch.mkdir(exist_ok=True)
    return Workplace(
        handed_in=inputs.get(name),
        num_handed_in=sum(spec.location.hub == "local" for spec in specs),
        scratch=scratch,
        num_proc=arguments.dataset_num_proc,
        download_mode=arguments.download_mode,
        secrets={"hf": context.secret("HF_TOKEN"), "ms": context.secret("MODELSCOPE_API_TOKEN")},
        progress=context.reporter.progress,
    )


STAGE = Stage(
    name="preprocess",
    version=1,
    arguments=PreprocessArguments,
    inputs={
        "dataset": Input(kinds=("files",), required=False, help="local files with rows to train on"),
        "val_dataset": Input(kinds=("files",), required=False, help="local files with rows to validate on"),
    },
    output="dataset",
    function=preprocess,
    libraries=("pyarrow",),
    prepare=prepare,
)
