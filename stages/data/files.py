"""Which files at a path hold the rows of a subset and a split, as the `datasets` library finds them.

`data_files(Path("folder"), "en")` gives the files of `folder/en/`, or `folder/en.jsonl`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from stages.data.opened import format_of
from stages.data.readers import DATA_SUFFIXES
from stages.errors import DataError

__all__ = ["data_files", "everything"]

# What the `datasets` library and its hubs write beside the data.
NOT_ROWS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def data_files(path: Path, subset: str | None = None, split: str = "train") -> list[Path]:
    """The files to read at a path, sorted.

    A file is read itself. Of a folder, the `configs` that its README.md names are its subsets; without them each
    subfolder, or file without its suffix, is one, and all of it is read if none is asked for. Where names of folders
    or files say a split, such as `train` or `test-00001`, those of the split are read, else all. Hidden files are not.

    Args:
        path: a file or folder.
        subset: several are separated by `/`; `all` is all of them.
        split: as `train`, or `all`.

    Raises:
        DataError: no file of a known format, an unknown subset or split.
    """
    formats = ", ".join(DATA_SUFFIXES)
    if path.is_file():
        if format_of(path) not in DATA_SUFFIXES:
            raise DataError(f"{path} is not of a known format. Choose from: {formats}")
        if subset:
            raise DataError(f"{path} is a file, which has no subsets: drop {':' + subset!r}")
        return [path]
    files = _candidates(path)
    if not files:
        raise DataError(f"{path} holds no data file. Known formats: {formats}")
    if len(files) == 1 and not subset:  # a file that was handed in by itself, whatever its name says
        return files
    if configs := _configs(path):
        return [
            file for name in _choose(path, configs, subset) for file in _matching(path, files, configs[name], split)
        ]
    if not subset:
        return _of_split(path, files, split)
    subsets = _subsets(path, files)
    if subset == "all" and subset not in subsets:
        return _of_split(path, files, split)
    chosen = [file for name in _choose(path, subsets, subset) for file in _of_split(path, subsets[name], split)]
    return list(dict.fromkeys(chosen))


def everything(path: Path) -> list[Path]:
    """All files in a folder, sorted, but for hidden ones; links to folders are followed."""
    found, seen = [], set()
    for folder, folders, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [name for name in folders if not name.startswith(".") and real not in seen]
        if real not in seen:
            found += [Path(folder, name) for name in names if not name.startswith(".")]
        seen.add(real)
    return sorted(file for file in found if file.is_file())


def _candidates(path: Path) -> list[Path]:
    return [file for file in everything(path) if format_of(file) in DATA_SUFFIXES and file.name not in NOT_ROWS]


def _subsets(path: Path, files: Iterable[Path]) -> dict[str, list[Path]]:
    """Subfolders and files, by their names; several files may be one subset: `en.jsonl`, `en.csv`."""
    found: dict[str, list[Path]] = {}
    for file in files:
        first, *inside = file.relative_to(path).parts
        name = first if inside else first[: first.lower().rindex(format_of(file))]
        found.setdefault(name, []).append(file)
    return found


def _choose(path: Path, there: Iterable[str], asked: str | None) -> Sequence[str]:
    """SWIFT's rule: those asked for, or all; with none, the only one or `default`."""
    names = list(there)
    if not asked:
        if len(names) == 1 or "default" in names:
            return names if len(names) == 1 else ["default"]
        raise DataError(f"{path} has the subsets {', '.join(names)}: name those to read, as {path}:{names[0]}")
    if asked == "all" and "all" not in names:
        return names
    chosen = [name.strip() for name in asked.split("/")]
    for name in chosen:
        if name not in names:
            closest = get_close_matches(name, names, n=1)
            hint = f"Did you mean {closest[0]!r}? " if closest else ""
            raise DataError(f"{path} has no subset {name!r}. {hint}It has: {', '.join(names[:20])}")
    return chosen


def _of_split(path: Path, files: Sequence[Path], split: str) -> list[Path]:
    """The files whose folder, or else whose name, says the split; all if no name says any."""
    if split == "all":
        return list(files)
    for by_folder in (True, False):
        found = {name: [file for file in files if _says(file.relative_to(path), name, by_folder)] for name in SPLITS}
        present = [name for name, members in found.items() if members]
        if split in present:
            return found[split]
        if present:
            raise DataError(f"{path} has no split {split!r}, only {', '.join(present)}: name the file or folder itself")
    if split != "train":
        raise DataError(f"{path} has no split {split!r}: no folder or file in it is named so")
    return list(files)


def _says(file: Path, split: str, by_folder: bool) -> bool:
    keywords = "|".join(SPLITS[split])
    texts = [f"{part}." for part in file.parts[:-1]] if by_folder else [file.name]
    return any(re.search(rf"(^|[-._ 0-9])({keywords})[-._ 0-9]", text) for text in texts)


def _configs(path: Path) -> dict[str, dict[str, list[str]]]:
    """The subsets that README.md declares, each with the patterns of its splits; none if it declares no files."""
    import yaml

    try:
        head = re.match(r"\ufeff?---\r?\n(.*?)\n---", (path / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    except (OSError, UnicodeDecodeError):
        return {}
    if head is None:
        return {}
    try:
        declared = (yaml.safe_load(head[1]) or {}).get("configs", [])
        return {
            str(config["config_name"]): _patterns(config["data_files"]) for config in declared if "data_files" in config
        }
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path / 'README.md'} declares `configs` that cannot be read: {reason:.100}") from error


def _patterns(declared: object) -> dict[str, list[str]]:
    """Of `data_files`: a pattern, several, by split, or a list of {split, path}."""
    if isinstance(declared, str):
        return {"train": [declared]}
    if isinstance(declared, dict):
        return {str(split): _as_list(paths) for split, paths in declared.items()}
    found: dict[str, list[str]] = {}
    for entry in _as_list(declared):
        if isinstance(entry, dict):
            found.setdefault(str(entry["split"]), []).extend(_as_list(entry["path"]))
        else:
            found.setdefault("train", []).append(entry)
    return found


def _as_list(value: object) -> list[str]:
    return list(value) if isinstance(value, list) else [str(value)]


def _matching(path: Path, files: Sequence[Path], patterns: dict[str, list[str]], split: str) -> list[Path]:
    if split not in patterns:
        raise DataError(f"{path} has no split {split!r}, only {', '.join(patterns)}")
    wanted = {found for pattern in patterns[split] for found in path.glob(pattern)}
    matching = [file for file in files if file in wanted or any(parent in wanted for parent in file.parents)]
    if not matching:
        raise DataError(f"{path} holds no data file that matches {' '.join(patterns[split])}, which README.md names")
    return matching
