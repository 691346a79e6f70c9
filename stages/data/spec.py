"""Reads what a user writes for a dataset, `[hf::|ms::|pypi::]id_or_path[:subset[/subset]][#count]`.

`parse_dataset("pypi::llamafactory==0.9.5:data/alpaca_en_demo.json#500", use_hf=False)`
"""

from __future__ import annotations

from dataclasses import dataclass

from stages.errors import DataError
from stages.sources.location import Location, exists, parse_location

__all__ = ["DatasetSpec", "parse_dataset"]


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset.

    Attributes:
        location: a path, a hub's id, a package, or the number of a path that was handed in.
        revision: the hub's branch, tag or commit.
        subset: the hub's subsets, separated by `/`; of a package, the path inside.
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


def parse_dataset(text: str, *, use_hf: bool) -> DatasetSpec:
    """A path that exists wins, as a whole or before its `#count`; then `#count`, the prefix, the revision, the subset.

    Raises:
        DataError: a path that does not exist, a count that is no whole number above 0, a malformed id.
    """
    if exists(text):
        return DatasetSpec(Location("path", text))
    name, sample = _split_count(text)
    if exists(name):
        return DatasetSpec(Location("path", name), sample=sample)
    prefix, mark, rest = name.partition("::")
    head, _, subset = rest.partition(":") if mark else name.partition(":")
    head, _, revision = head.partition("@")
    if exists(head):
        raise DataError(
            f"{text!r}: {head} is on this machine, where there are no subsets ({subset or revision}): drop it"
        )
    location = parse_location(f"{prefix}{mark}{head}" if mark else head, use_hf=use_hf, error=DataError)
    if location.hub == "pypi" and not subset:
        raise DataError(
            f"{text!r} names no file inside of the package. Write it as pypi::NAME==VERSION:path/inside.json"
        )
    return DatasetSpec(location, revision or None, subset or None, sample)


def _split_count(text: str) -> tuple[str, int | None]:
    name, mark, count = text.rpartition("#")
    if not mark:
        return text, None
    if not count.isdigit() or int(count) == 0:
        raise DataError(f"{text!r}: after # stands how many rows to take, a whole number above 0, not {count!r}")
    return name, int(count)
