"""Datasets that a user registers, with `--custom_dataset_info` or in a plugin: `Registry(entries).locate("alpaca", …)`.

The fields are SWIFT's: `ms_dataset_id`, `hf_dataset_id`, `dataset_path`, `subsets`, `split`, `columns`, `messages` …
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from stages.data.spec import DatasetSpec, Reading
from stages.errors import ArgumentsError, DataError
from stages.sources.location import Location, default_hub, exists

__all__ = ["DatasetMeta", "Part", "Registry", "SubsetDataset", "read_dataset_info"]

MESSAGES = ("role_key", "content_key", "user_role", "assistant_role", "system_role")
RowFunction = Callable[[dict[str, Any]], dict[str, Any] | None]


@dataclass(frozen=True)
class SubsetDataset:
    """A part of a dataset.

    Attributes:
        subset: its name on the hub, or the subfolder of a path.
        name: what it is called after the colon of `--dataset`; the same, if not given.
        split: where it differs from the dataset's.
        columns: where they differ from the dataset's.
        messages: where they differ from the dataset's.
        is_weak_subset: left out of `:all`.
    """

    subset: str = "default"
    name: str | None = None
    split: Sequence[str] | None = None
    columns: Mapping[str, str] | None = None
    messages: Mapping[str, str] | None = None
    is_weak_subset: bool = False

    @property
    def title(self) -> str:
        """What it is called."""
        return self.name or self.subset


@dataclass(frozen=True)
class DatasetMeta:
    """A registered dataset; at least one of the ids, or the path, is given.

    Attributes:
        ms_dataset_id: on ModelScope.
        hf_dataset_id: on Hugging Face.
        dataset_path: on this machine.
        dataset_name: a name for `--dataset`, beside the ids and the path, and their last parts.
        ms_revision: branch, tag or commit.
        hf_revision: branch, tag or commit.
        subsets: names, or `SubsetDataset`s.
        split: which splits are read, one after the other.
        columns: the dataset's names of columns, with the standard name of each.
        messages: names of keys and roles in its conversations.
        preprocess_func: in a plugin, makes of a row as read one of any known format, or None to drop it.
        plugin: the number of the plugins' dataset whose `preprocess_func` this is; `prepare` writes it.
        tags: for people.
        help: for people.
        huge_dataset: for people.
    """

    ms_dataset_id: str | None = None
    hf_dataset_id: str | None = None
    dataset_path: str | None = None
    dataset_name: str | None = None
    ms_revision: str | None = None
    hf_revision: str | None = None
    subsets: Sequence[SubsetDataset | str] = ()
    split: Sequence[str] = ("train",)
    columns: Mapping[str, str] = field(default_factory=dict)
    messages: Mapping[str, str] = field(default_factory=dict)
    preprocess_func: RowFunction | None = None
    plugin: int | None = None
    tags: Sequence[str] = ()
    help: str | None = None
    huge_dataset: bool = False

    def __post_init__(self) -> None:
        """Raises DataError if it says neither id nor path."""
        if not (self.ms_dataset_id or self.hf_dataset_id or self.dataset_path):
            raise DataError(
                f"dataset {self.dataset_name or 'without a name'}: "
                "give one of ms_dataset_id, hf_dataset_id and dataset_path"
            )
        subsets = [SubsetDataset(one) if isinstance(one, str) else one for one in self.subsets]
        object.__setattr__(self, "subsets", tuple(subsets))

    @property
    def parts(self) -> tuple[SubsetDataset, ...]:
        """Its subsets as such."""
        return tuple(one for one in self.subsets if isinstance(one, SubsetDataset))

    @property
    def title(self) -> str:
        """What to call it in a message."""
        return self.dataset_name or self.ms_dataset_id or self.hf_dataset_id or str(self.dataset_path)

    def names(self) -> Iterator[str]:
        """What no second dataset may be called."""
        ids = (self.dataset_name, self.ms_dataset_id, self.hf_dataset_id, self.dataset_path)
        yield from dict.fromkeys(one for one in ids if one)

    def to_json(self, location: Location, argument: str) -> dict[str, Any]:
        """What says how its rows are read, for a key: no path of this machine, no default, nothing for people.

        Args:
            location: where it was found; a path that was handed in is `local`.
            argument: `dataset` or `val_dataset`, which holds the path.

        Returns:
            Nothing, if its rows are read as those of any other dataset.
        """
        told: dict[str, Any] = {"columns": dict(self.columns), "messages": dict(self.messages), "plugin": self.plugin}
        told["subsets"] = [_subset_to_json(part) for part in self.parts]
        told["split"] = [] if tuple(self.split) == ("train",) else list(self.split)
        told = {name: value for name, value in told.items() if value not in (None, [], {})}
        if location.hub == "local":
            place = {"dataset_path": f"local::{argument}/{location.name}"}
        else:
            place = {f"{location.hub}_dataset_id": location.name}
        return {**place, **told} if told else {}


def _subset_to_json(subset: SubsetDataset) -> dict[str, Any]:
    told = {one.name: getattr(subset, one.name) for one in fields(subset)}
    told = {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}
    return {name: value for name, value in told.items() if value not in (None, False)}


@dataclass(frozen=True)
class Part:
    """What is read in one go: a subset's split.

    Attributes:
        subset: None for the one that is read if none is named.
        split: as `train`.
        reading: how its rows are to be understood.
        plugin: the number of the plugins' dataset that the reading's function is of.
    """

    subset: str | None
    split: str
    reading: Reading
    plugin: int | None = None


class Registry:
    """Registered datasets, by every name they have."""

    def __init__(self, entries: Iterable[DatasetMeta]) -> None:
        """Raises DataError where two are called the same."""
        self.entries: list[DatasetMeta] = []
        self._by_name: dict[str, DatasetMeta] = {}
        for entry in entries:
            for name in entry.names():
                if name in self._by_name:
                    raise DataError(f"dataset {name!r} is registered twice: drop one, or give it another name")
                self._by_name[name] = entry
            self.entries.append(entry)

    def locate(self, name: str, hub: str, *, use_hf: bool) -> tuple[Location, str | None] | None:
        """Where the dataset of that name is, and its revision; None if it is not registered.

        Args:
            name: dataset_name, an id, the path as registered, or the last part of one of them.
            hub: the prefix that the user has written, if any.
            use_hf: otherwise says which hub.

        Raises:
            DataError: it is not on the hub that was asked for, or its path does not exist.
        """
        entry = self._by_name.get(name) or self._by_last_part(name)
        if entry is None or hub not in ("", "hf", "ms"):
            return None
        if entry.dataset_path and not hub:
            if not exists(entry.dataset_path):
                raise DataError(f"dataset {name!r} is registered at {entry.dataset_path}, which does not exist")
            return Location("path", entry.dataset_path), None
        places = {"hf": (entry.hf_dataset_id, entry.hf_revision), "ms": (entry.ms_dataset_id, entry.ms_revision)}
        first = default_hub(use_hf)
        for one in [hub] if hub else sorted(places, key=lambda name: name != first):
            dataset_id, revision = places[one]
            if dataset_id:
                return Location("hf" if one == "hf" else "ms", dataset_id), revision
        raise DataError(f"dataset {name!r} is registered without {hub}_dataset_id")

    def _by_last_part(self, name: str) -> DatasetMeta | None:
        found = {
            id(entry): entry
            for key, entry in self._by_name.items()
            if name in (Path(key).name, Path(key).stem) and not key.startswith("local::")
        }
        if len(found) > 1:
            raise DataError(f"{name!r} may be {' or '.join(one.title for one in found.values())}: write it in full")
        return next(iter(found.values()), None)

    def of(self, location: Location, argument: str) -> DatasetMeta | None:
        """What is registered of a dataset's place, the `local` paths of `argument` among them."""
        if location.hub == "local":
            return self._by_name.get(f"local::{argument}/{location.name}")
        if location.hub == "path":
            place = Path(location.name).expanduser().resolve()
            paths = {entry.dataset_path: entry for entry in self.entries if entry.dataset_path}
            return next((entry for path, entry in paths.items() if Path(path).expanduser().resolve() == place), None)
        return next(
            (entry for entry in self.entries if location.name == getattr(entry, f"{location.hub}_dataset_id", None)),
            None,
        )

    def parts(self, spec: DatasetSpec, argument: str) -> list[Part]:
        """What of a dataset is to be read, and how.

        Raises:
            DataError: an unknown subset, or none where there are several and none is `default`.
        """
        entry = self.of(spec.location, argument)
        if entry is None:
            asked = spec.subset.split("/") if spec.subset and spec.location.hub in ("hf", "ms") else [spec.subset]
            return [Part(subset, "train", Reading()) for subset in asked]
        chosen: list[SubsetDataset] = _choose(entry, spec.subset) if entry.parts else _as_asked(spec)
        return [
            Part(
                subset.subset if subset.subset != "default" or subset.name else None,
                split,
                Reading(
                    entry.columns if subset.columns is None else subset.columns,
                    entry.messages if subset.messages is None else subset.messages,
                    entry.preprocess_func,
                ),
                entry.plugin,
            )
            for subset in chosen
            for split in subset.split or entry.split
        ]


def _as_asked(spec: DatasetSpec) -> list[SubsetDataset]:
    """Where no subsets are registered, those asked for are taken as they are."""
    if not spec.subset:
        return [SubsetDataset()]
    names = spec.subset.split("/") if spec.location.hub in ("hf", "ms") else [spec.subset]
    return [SubsetDataset(name, name) for name in names]


def _choose(entry: DatasetMeta, asked: str | None) -> list[SubsetDataset]:
    subsets = {subset.title: subset for subset in entry.parts}
    if not asked:
        if len(subsets) > 1 and "default" not in subsets:
            raise DataError(f"{entry.title} has the subsets {', '.join(subsets)}: name those to read after a colon")
        return [subsets["default"]] if "default" in subsets else list(subsets.values())
    if asked == "all" and "all" not in subsets:
        return [subset for subset in subsets.values() if not subset.is_weak_subset]
    for name in asked.split("/"):
        if name not in subsets:
            raise DataError(
                f"{entry.title} has no subset {name!r}. {_closest(name, subsets)}It has: {', '.join(subsets)}"
            )
    return [subsets[name] for name in asked.split("/")]


def _closest(name: str, names: Iterable[str]) -> str:
    closest = get_close_matches(name, list(names), n=1)
    return f"Did you mean {closest[0]!r}? " if closest else ""


def read_dataset_info(text: str) -> list[DatasetMeta]:
    """The datasets of one `--custom_dataset_info`: a JSON file's path, or JSON; relative paths start at the file.

    Raises:
        ArgumentsError: no such file, not JSON, an unknown field, a value of the wrong type.
    """
    inline = text.lstrip().startswith(("[", "{"))
    path = Path(text).expanduser()
    where = "custom_dataset_info" if inline else path.name
    try:
        value = json.loads(text if inline else path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ArgumentsError(f"`--custom_dataset_info {text:.200}`: neither a file nor JSON") from None
    except (OSError, ValueError) as error:
        raise ArgumentsError(f"`--custom_dataset_info`: {where} is not JSON: {error!s:.200}") from None
    if isinstance(value, dict) and not {one.name for one in fields(DatasetMeta)} & value.keys():
        value = [{"dataset_name": name, **_object(entry, f"{where}: {name}")} for name, entry in value.items()]
    entries = value if isinstance(value, list) else [value]
    read = [_entry(_object(one, f"{where}: entry {n}"), f"{where}: entry {n}") for n, one in enumerate(entries, 1)]
    return read if inline else [_beside(entry, path.resolve().parent) for entry in read]


def _beside(entry: DatasetMeta, folder: Path) -> DatasetMeta:
    if not entry.dataset_path or entry.dataset_path.startswith("local::"):
        return entry
    return replace(entry, dataset_path=str(folder / Path(entry.dataset_path).expanduser()))


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ArgumentsError(f"`--custom_dataset_info`: {where} is {value!r:.60}, not an object")
    return value


def _entry(told: dict[str, Any], where: str) -> DatasetMeta:
    _check_fields(told, [one.name for one in fields(DatasetMeta) if one.name != "preprocess_func"], where)
    subsets = [
        one if isinstance(one, str) else _subset(_object(one, where), f"{where}, subset {number}")
        for number, one in enumerate(_list(told.get("subsets", []), f"{where}: subsets"), start=1)
    ]
    try:
        return DatasetMeta(**{**_checked(told, where), "subsets": subsets})
    except DataError as error:
        raise ArgumentsError(f"`--custom_dataset_info`: {where}: {error}") from None


def _subset(told: dict[str, Any], where: str) -> SubsetDataset:
    _check_fields(told, [one.name for one in fields(SubsetDataset)], where)
    return SubsetDataset(**_checked(told, where))


def _check_fields(told: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in told:
        if name not in known:
            hint = _closest(name, known)
            raise ArgumentsError(
                f"`--custom_dataset_info`: {where} has an unknown field {name!r}. {hint}Choose from: {', '.join(known)}"
            )


def _checked(told: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values, of the types that they should have."""
    checked: dict[str, Any] = {}
    for name, value in told.items():
        what = f"{where}: {name}"
        if name in ("columns", "messages"):
            checked[name] = _texts_by_name(value, what)
            if name == "messages":
                _check_fields(checked[name], MESSAGES, f"{what}")
        elif name in ("split", "tags", "subsets"):
            values = _list([value] if isinstance(value, str) else value, what)
            if name != "subsets" and not all(isinstance(one, str) for one in values):
                raise ArgumentsError(f"`--custom_dataset_info`: {what} is {value!r:.60}, not a list of texts")
            checked[name] = tuple(values)
        elif name == "plugin":
            checked[name] = _of_type(value, int, what, "a number")
        elif name in ("is_weak_subset", "huge_dataset"):
            checked[name] = _of_type(value, bool, what, "true or false")
        else:
            checked[name] = value if value is None else _of_type(value, str, what, "a text")
    return checked


def _texts_by_name(value: object, what: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise ArgumentsError(f"`--custom_dataset_info`: {what} is {value!r:.60}, not an object of texts")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ArgumentsError(f"`--custom_dataset_info`: {what} is {value!r:.60}, not a list")
    return value


def _of_type(value: object, kind: type, what: str, wanted: str) -> Any:
    if not isinstance(value, kind):
        raise ArgumentsError(f"`--custom_dataset_info`: {what} is {value!r:.60}, not {wanted}")
    return value
