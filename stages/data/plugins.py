"""Python files of a user's own, which register datasets, templates or loss scales: `load_plugins(inputs["plugins"])`.

from stages.data.plugins import DatasetMeta, register_dataset

register_dataset(DatasetMeta(dataset_name="faq", dataset_path="faq.jsonl", preprocess_func=lambda row: …))
"""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from stages.data.dataset_info import DatasetMeta, SubsetDataset
from stages.errors import ArgumentsError, MartletError

__all__ = [
    "AlpacaPreprocessor",
    "AutoPreprocessor",
    "DatasetMeta",
    "MessagesPreprocessor",
    "ResponsePreprocessor",
    "RowPreprocessor",
    "SubsetDataset",
    "hand_in_plugins",
    "load_plugins",
    "register_dataset",
    "say_how_rows_are_written",
]

HANDED_IN = "local::plugins"
PREFIX = "martlet_plugin_"
OF_ROWS = 3
"""The first of the registries, which say how rows are written; those that follow are of training."""

_imported: set[str] = set()
_collected: ContextVar[list[DatasetMeta] | None] = ContextVar("_collected", default=None)


class RowPreprocessor:
    """SWIFT's way to write a row function: a class with a method `preprocess`, and names of columns.

    All of SWIFT's preprocessors are this one, as a row's format is told from its columns.
    """

    def __init__(self, *, columns: Mapping[str, str] | None = None, **messages: str | None) -> None:
        """
        Args:
            columns: names of columns, with what they are called from here on; before `preprocess` sees them.
            messages: `role_key`, `content_key`, `user_role`, `assistant_role`, `system_role`.
        """
        self.columns = dict(columns or {})
        self.messages = {name: value for name, value in messages.items() if value is not None}

    def preprocess(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """The row as it is; to be overridden."""
        return row

    def __call__(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """The row with its columns renamed, and preprocessed."""
        return self.preprocess({self.columns.get(name, name): value for name, value in row.items()})


AlpacaPreprocessor = AutoPreprocessor = MessagesPreprocessor = ResponsePreprocessor = RowPreprocessor


def register_dataset(dataset_meta: DatasetMeta, *, exist_ok: bool = False) -> None:
    """Makes a dataset known by its ids, path or name; for use in a plugin.

    Args:
        dataset_meta: the dataset.
        exist_ok: it replaces one of the same name of the same plugin.

    Raises:
        ArgumentsError: the plugin registers one of that name already.
    """
    found = _collected.get()
    if found is None:
        raise ArgumentsError("register_dataset is for files given with `--custom_register_path`")
    same = [other for other in found if set(other.names()) & set(dataset_meta.names())]
    if same and not exist_ok:
        raise ArgumentsError(f"dataset {dataset_meta.title!r} is registered twice")
    found[:] = [other for other in found if other not in same]
    found.append(dataset_meta)


def hand_in_plugins(paths: Sequence[str]) -> tuple[list[str], tuple[Path, ...]]:
    """What a stage's `prepare` makes of `--custom_register_path`: what stands in the key, and the files to take in.

    Raises:
        ArgumentsError: no such file, or none of Python.
    """
    files = []
    for text in paths:
        if text == HANDED_IN:
            return [HANDED_IN], ()
        path = Path(text).expanduser()
        if not path.is_file():
            what = "is a folder: name the Python files in it" if path.is_dir() else "does not exist"
            raise ArgumentsError(f"`--custom_register_path {text}` {what}")
        if path.suffix != ".py":
            raise ArgumentsError(f"`--custom_register_path {text}` is no Python file: its name ends in .py")
        files.append(path)
    return ([HANDED_IN] if files else []), tuple(files)


def load_plugins(folder: Path | Sequence[Path], *, beside: Sequence[Path] = ()) -> list[DatasetMeta]:
    """Executes the Python files in the order they were given in, each content once a process.

    What other files have registered before is forgotten.

    They may import each other, and nothing else that lies beside them: it would be in no key, and not where others run.

    Args:
        folder: where they were checked out, `a.py` or `0/a.py`, `1/b.py` …; or the files themselves.
        beside: folders of other files, which is not forgotten if they have been loaded.

    Returns:
        The datasets that they register.

    Raises:
        ArgumentsError: one of them raises; the message names the file and the line.
    """
    files = _in_order(folder) if isinstance(folder, Path) else list(folder)
    _forget_others({_name(file) for file in [*files, *(other for one in beside for other in _in_order(one))]})
    with _Importable(files):
        return [dataset for file in files for dataset in _load(file)]


def say_how_rows_are_written(files: Sequence[Path]) -> bool:
    """Whether files that `load_plugins` has executed register a template, a way to write tools, or a loss scale."""
    return any(any(sys.modules[_name(file)].__dict__["__registered__"][:OF_ROWS]) for file in files)


def _name(file: Path) -> str:
    return f"{PREFIX}{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"


def _forget_others(names: set[str]) -> None:
    """What other plugins, or other states of these, have registered in this process is not there any more."""
    for name in [name for name in sys.modules if name.startswith(PREFIX) and name not in names]:
        _forget(sys.modules.pop(name).__dict__.get("__registered__", []))


def _added(before: Sequence[set[str]]) -> list[set[str]]:
    return [set(registry) - known for registry, known in zip(_registries(), before, strict=True)]


def _forget(registered: Sequence[set[str]]) -> None:
    for registry, names in zip(_registries(), registered, strict=False):
        for name in names:
            registry.pop(name, None)


def _registries() -> tuple[dict[str, Any], ...]:
    """Where plugins register what is known by its name alone."""
    from stages.data import loss_scale
    from stages.data.templates import families, meta, tools  # noqa: F401 - the known templates come first
    from stages.training import plugins

    of_training = plugins.OPTIMIZERS, plugins.LOSSES, plugins.METRICS
    return loss_scale.RULES, meta.TEMPLATES, tools.TOOLS_PROMPTS, *of_training


def _in_order(folder: Path) -> list[Path]:
    files = list(folder.rglob("*.py"))
    return sorted(
        files, key=lambda file: (len(file.parent.name), file.parent.name) if file.parent != folder else (0, "")
    )


def _load(file: Path) -> list[DatasetMeta]:
    code, name = file.read_bytes(), _name(file)
    if (module := sys.modules.get(name)) is not None:
        return list(module.__dict__["__datasets__"])
    module = ModuleType(name)
    module.__file__ = str(file)
    found: list[DatasetMeta] = []
    before = [set(registry) for registry in _registries()]
    with _executing(name, module, found):
        try:
            exec(compile(code, str(file), "exec"), module.__dict__)
        except (Exception, SystemExit) as error:
            _forget(_added(before))
            raise ArgumentsError(f"`--custom_register_path`: {_where(error, file)}: {_what(error, file)}") from error
        module.__dict__["__registered__"] = _added(before)
        module.__dict__["__datasets__"] = [_beside(dataset, file.resolve().parent) for dataset in found]
    return list(module.__dict__["__datasets__"])


def _beside(dataset: DatasetMeta, folder: Path) -> DatasetMeta:
    """A relative path starts at the plugin; of an object that cannot be called, the method `preprocess` is."""
    path = dataset.dataset_path
    function: Any = dataset.preprocess_func
    if function is not None and not callable(function):
        function = getattr(function, "preprocess", None)
        if function is None:
            raise ArgumentsError(
                f"dataset {dataset.title!r}: preprocess_func is neither a function nor has `preprocess`"
            )
    return replace(
        dataset,
        dataset_path=str(folder / Path(path).expanduser()) if path else None,
        preprocess_func=function,
        messages={**dataset.messages, **getattr(dataset.preprocess_func, "messages", {})},
    )


@contextmanager
def _executing(name: str, module: ModuleType, found: list[DatasetMeta]) -> Iterator[None]:
    """While a plugin runs it is a module, and what it registers is noted."""
    sys.modules[name] = module
    token = _collected.set(found)
    try:
        yield
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        _collected.reset(token)


class _Importable(MetaPathFinder):
    """Plugins that may be imported, by the names of their files, while it is entered."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = {file.stem: file for file in reversed(files)}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `MetaPathFinder`."""
        file = self._files.get(fullname)
        if file is None:
            return None
        _imported.add(fullname)
        return spec_from_file_location(fullname, file)

    def __enter__(self) -> None:
        for name in _imported:  # of earlier plugins, which are none of these
            sys.modules.pop(name, None)
        _imported.clear()
        sys.meta_path.insert(0, self)

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)


def _where(error: BaseException, file: Path) -> str:
    """The file and the line, of the plugin, where it went wrong."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f"{file.name} line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{file.name} line {lines[-1]}" if lines else file.name


def _what(error: BaseException, file: Path) -> str:
    said = error.msg if isinstance(error, SyntaxError) else str(error)  # which else says the place once more
    text = next(iter(said.strip().splitlines()), "")
    if isinstance(error, MartletError):
        return text
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] == "swift":
        text += ". What SWIFT's plugins import is in stages.data.plugins and stages.training.plugins"
    if (
        isinstance(error, ImportError)
        and error.name
        and (file.parent / error.name.split(".")[0]).with_suffix(".py").is_file()
    ):
        text += f": name {error.name.split('.')[0]}.py in `--custom_register_path` too"
    return f"{type(error).__name__}: {text:.200}" if text else type(error).__name__
