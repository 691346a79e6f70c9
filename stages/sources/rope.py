"""How many positions a model has, and how they are stretched: `stretch_positions(folder, "linear", 16384)`.

Rotary positions are scaled in config.json, where transformers and vLLM read them; no weight changes. The count of
positions that the model was trained with, max_position_embeddings, stays: dynamic scaling starts from it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.errors import ModelError
from stages.sources.model_folder import read_json

__all__ = ["max_positions", "stretch_positions"]

STRETCHING = ("linear", "dynamic")


def max_positions(config: Mapping[str, Any]) -> int | None:
    """Tokens that the model of a config.json takes; None where it does not say."""
    text = _text(config)
    limit = text.get("max_position_embeddings")
    if not isinstance(limit, (int, float)) or limit <= 0:
        return None
    rope = _scaling(text)
    stretched = (rope.get("rope_type") or rope.get("type")) in STRETCHING
    return int(limit * (rope.get("factor") or 1 if stretched else 1))


def stretch_positions(folder: Path, kind: str, max_length: int) -> float:
    """Makes a model folder's positions reach `max_length`; a larger factor that is there already is kept.

    Args:
        folder: its config.json is written anew.
        kind: `linear` or `dynamic`.
        max_length: tokens.

    Returns:
        The factor: the least whole number that suffices.

    Raises:
        ModelError: the model has no rotary positions, or several kinds of them.
    """
    path = folder / "config.json"
    config = read_json(path)
    text = _text(config)
    limit, rope = text.get("max_position_embeddings"), _scaling(text)
    if not limit or not (rope or text.get("rope_theta")):
        raise ModelError(f"`--rope_scaling {kind}`: the model ({config.get('model_type')}) has no rotary positions")
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise ModelError(f"`--rope_scaling {kind}`: the model has different rotary positions in different layers")
    factor = max(float(math.ceil(max_length / limit)), float(rope.get("factor") or 1), 1.0)
    kept = {name: value for name, value in rope.items() if name in ("rope_theta", "partial_rotary_factor")}
    scaling = {**kept, "rope_type": kind, "factor": factor}
    text["rope_parameters" if "rope_parameters" in text else "rope_scaling"] = scaling
    path.unlink()  # it may be another name of the user's own file
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return factor


def _text(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part about the language model."""
    part = config.get("text_config")
    found = part if isinstance(part, dict) else config
    assert isinstance(found, dict), found
    return found


def _scaling(text: Mapping[str, Any]) -> Mapping[str, Any]:
    return text.get("rope_parameters") or text.get("rope_scaling") or {}
