"""The files that stand beside a model's weights: `link_companions(base, out)`."""

from __future__ import annotations

from pathlib import Path

from stages.links import link_or_copy
from stages.sources.model_folder import choose_model_files

__all__ = ["link_companions"]


def link_companions(source: Path, out: Path) -> None:
    """Puts configuration, tokenizer and licence of a model into `out`, but no weights and nothing that is there."""
    for name in choose_model_files((path.name for path in source.iterdir() if path.is_file()), source.name):
        if name.endswith((".safetensors", ".safetensors.index.json")) or (out / name).exists():
            continue
        link_or_copy(source / name, out / name)
