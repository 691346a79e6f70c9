"""Writes what a row's `objects` say into its text: `ground(row, sizes, seen, Notation("plain", "norm_1000"))`.

The k-th `<ref-object>` of a row stands for the caption of its k-th object, the k-th `<bbox>` for its box, in the way
that the model was taught to write them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stages.data.rows import RowError

__all__ = ["Notation", "choose_notation", "ground"]

REF, BOX = "<ref-object>", "<bbox>"
QWEN = {"<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"}
PIXELS = ("qwen2_5_vl", "qwen2_5_omni", "qwen2_5_omni_thinker")
"""Model types that write pixels of the image as they see it; the others write thousandths of its sides."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Notation:
    """How a model writes a reference and a box.

    Attributes:
        tokens: `qwen`: <|object_ref_start|>…, <|box_start|>(x1,y1),(x2,y2)<|box_end|>; `plain`: the words themselves,
            [x1,y1,x2,y2].
        unit: `norm_1000`: thousandths of the image's sides; `pixels`: of the image as the model sees it.
    """

    tokens: Literal["qwen", "plain"]
    unit: Literal["norm_1000", "pixels"]

    def ref(self, caption: str) -> str:
        """A reference."""
        return f"<|object_ref_start|>{caption}<|object_ref_end|>" if self.tokens == "qwen" else caption

    def box(self, corners: Sequence[int]) -> str:
        """A box, or a point."""
        if self.tokens == "plain":
            return f"[{','.join(map(str, corners))}]"
        points = ",".join(f"({x},{y})" for x, y in zip(corners[::2], corners[1::2], strict=True))
        return f"<|box_start|>{points}<|box_end|>"


def choose_notation(model_type: str, added_tokens: Iterable[str]) -> Notation:
    """Qwen's tokens where the tokenizer has them."""
    return Notation("qwen" if set(added_tokens) >= QWEN else "plain", "pixels" if model_type in PIXELS else "norm_1000")


def ground(
    row: Mapping[str, Any], originals: Sequence[Size], seen: Sequence[Size], notation: Notation
) -> Mapping[str, Any]:
    """The row with its placeholders replaced.

    Args:
        row: a standard one; without `objects` it is returned as it is.
        originals: width and height of each image as it lies in its file: `real` boxes are measured on it.
        seen: width and height of each image as the model sees it.
        notation: the model's.

    Raises:
        RowError: objects that cannot be read, or fewer of them than placeholders.
    """
    if not row.get("objects"):
        return row
    try:
        objects = json.loads(row["objects"])
        refs = (notation.ref(one["caption"]) for one in objects)
        boxes = (_boxes(one, originals, seen, notation) for one in objects)
        messages = [
            {**message, "content": _replace(_replace(message["content"], REF, refs), BOX, boxes)}
            for message in row["messages"]
        ]
    except RowError:
        raise
    except (ValueError, TypeError, LookupError) as error:
        raise RowError(f"objects {row['objects']!r:.80} cannot be read: {error}", "objects") from None
    return {**row, "messages": messages}


def _boxes(one: Mapping[str, Any], originals: Sequence[Size], seen: Sequence[Size], notation: Notation) -> str:
    """All boxes of one object."""
    index = one.get("image", 0)
    whole = {"real": originals[index], "norm_1000": (1000, 1000), "norm_1": (1, 1)}[one.get("bbox_type", "real")]
    target = seen[index] if notation.unit == "pixels" else (1000, 1000)
    given = one["bbox"] if isinstance(one["bbox"][0], list) else [one["bbox"]]
    scaled = [[round(value / whole[at % 2] * target[at % 2]) for at, value in enumerate(box)] for box in given]
    return "".join(notation.box(box) for box in scaled)


def _replace(text: str, placeholder: str, values: Iterator[str]) -> str:
    first, *rest = text.split(placeholder)
    pieces = [first]
    for piece in rest:
        value = next(values, None)
        if value is None:
            raise RowError(f"the text has more {placeholder} than there are objects", "objects")
        pieces += [value, piece]
    return "".join(pieces)
