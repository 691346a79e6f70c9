"""One row of a dataset or of tokens, for `martlet artifacts show DIGEST --row N`; what is trained is coloured."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.artifacts.reference import ArtifactRef
from stages.artifacts.store import Store
from stages.errors import UnknownReference
from stages.sources.model_folder import TOKENIZER_FILES

__all__ = ["row_text", "shown_row"]

DATASET_FILES = ("train.parquet",)
TOKENS_FILES = ("train.arrow", "train.parquet", "encoder.json", "stream.json", "plugins/**")


def shown_row(store: Store, reference: ArtifactRef, row: int) -> dict[str, Any]:
    """A row as JSON values: `columns` of a dataset's, `stretches` of text with their weights of a tokens artifact's.

    Raises:
        ArgumentsError: there is no such row.
        DataError: the rows are read as a stream.
        UnknownReference: nothing says which model's tokenizer made the tokens.
    """
    from stages.data.show import dataset_row, tokens_row

    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name, "rows"), Path(name, "model")
        if reference.kind == "dataset":
            store.check_out(reference, folder, DATASET_FILES)
            columns, num_rows = dataset_row(folder, row)
            return {"row": row, "num_rows": num_rows, "columns": columns}
        store.check_out(reference, folder, TOKENS_FILES)
        store.check_out(_model(store, reference), model, TOKENIZER_FILES)
        return tokens_row(folder, row, model).to_json()


def _model(store: Store, reference: ArtifactRef) -> ArtifactRef:
    models = [made.inputs["model"] for made in store.manifests(reference) if "model" in made.inputs]
    if not models:
        digest = reference.digest[:19]
        raise UnknownReference(f"no run says which model's tokenizer made {digest}: its text is not known")
    return models[0]


def row_text(shown: Mapping[str, Any], *, colour: bool | None = None) -> str:
    """For a terminal; without colours, what is trained stands in ⟦ ⟧.

    Args:
        shown: what `shown_row` gave.
        colour: whether the reader sees colours; whether stdout is a terminal if left out.
    """
    colour = sys.stdout.isatty() if colour is None else colour
    lines = [f"row {shown['row']} of {shown['num_rows']}"]
    if "columns" in shown:
        return "\n".join([*lines, json.dumps(shown["columns"], indent=2, ensure_ascii=False)])
    if shown.get("source_row", shown["row"]) != shown["row"]:
        lines[0] += f" (row {shown['source_row']} of the dataset)"
    for name, title in (("stretches", ""), ("rejected", "the rejected answer")):
        if name in shown:
            trained = sum(one["tokens"] for one in shown[name] if one["weight"])
            counted = f"{sum(one['tokens'] for one in shown[name])} tokens, {trained} of them trained"
            lines += ["", f"{title}: {counted}" if title else counted, _painted(shown[name], colour)]
    return "\n".join(lines)


def _painted(stretches: Sequence[Mapping[str, Any]], colour: bool) -> str:
    if not colour:
        return "".join(_marked(one) for one in stretches)
    from rich.console import Console
    from rich.text import Text

    text = Text()
    for one in stretches:
        text.append(one["text"], _style(one["weight"]))
    console = Console(force_terminal=True, color_system="standard", soft_wrap=True)
    with console.capture() as captured:
        console.print(text, end="")
    return captured.get()


def _style(weight: float) -> str:
    """Grey is only read, green is learnt, yellow is learnt less, magenta more."""
    if not weight:
        return "dim"
    return "bold green" if weight == 1 else "bold magenta" if weight > 1 else "bold yellow"


def _marked(stretch: Mapping[str, Any]) -> str:
    if not stretch["weight"]:
        return str(stretch["text"])
    weight = "" if stretch["weight"] == 1 else f"×{stretch['weight']:g} "
    return f"⟦{weight}{stretch['text']}⟧"
