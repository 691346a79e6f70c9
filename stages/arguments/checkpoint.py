"""Reads a checkpoint's folder: `read_checkpoint("output/m/v0-…/checkpoint-20").base_model`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stages.arguments.message import shorten

__all__ = ["Checkpoint", "read_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """A folder that was trained.

    Attributes:
        kind: an adapter, or a whole model.
        base_model: what the adapter belongs to, where the folder says so.
        saved: the arguments in its args.json; empty if it has none.
    """

    path: Path
    kind: Literal["adapter", "model"]
    base_model: str | None = None
    saved: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """What is in `folder`.

    Raises:
        ValueError: if there is no such folder, it cannot be read, or neither an adapter nor a model is in it.
    """
    given = shorten(folder)
    try:
        return _look_into(Path(folder), given)
    except OSError as error:
        raise ValueError(f"`--ckpt_dir {given}` cannot be read: {error.strerror}") from None


def _look_into(path: Path, given: str) -> Checkpoint:
    if not path.is_dir():
        raise ValueError(f"`--ckpt_dir {given}` is not a folder")
    saved = _read_object(path / "args.json") or _read_object(path.parent / "args.json")
    for home in (path, path / "default"):
        if (home / "adapter_config.json").is_file():
            if (home / "config.json").is_file():
                raise ValueError(f"`--ckpt_dir {given}` holds an adapter and a whole model: which is meant?")
            config = _read_object(home / "adapter_config.json")
            base = config.get("base_model_name_or_path") or saved.get("model") or None
            return Checkpoint(home, "adapter", base, saved)
    if (path / "config.json").is_file():
        return Checkpoint(path, "model", None, saved)
    steps = sorted(path.glob("checkpoint-*[0-9]"), key=lambda step: int(step.name.rsplit("-", 1)[1]))
    hint = f". Did you mean {steps[-1]}?" if steps else ""
    raise ValueError(f"`--ckpt_dir {given}` holds neither adapter_config.json nor config.json{hint}")


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path} is not JSON: the checkpoint is damaged") from None
    return record if isinstance(record, dict) else {}
