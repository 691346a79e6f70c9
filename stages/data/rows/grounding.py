"""Objects in images: `read_objects([{"caption": "c", "bbox": [1, 2, 3, 4]}], messages, num_images=1)`.

In the text the k-th `<ref-object>` stands for the caption of object k, the k-th `<bbox>` for its box.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stages.data.rows.values import Message, RowError, dump_json, literal, quoted

__all__ = ["read_objects"]

TYPES = {"real": "real", "norm_1000": "norm_1000", "norm_1": "norm_1", "norm1000": "norm_1000", "norm1": "norm_1"}
LARGEST = {"real": math.inf, "norm_1000": 1000, "norm_1": 1}


def read_objects(value: Any, messages: Sequence[Message], num_images: int) -> str | None:
    """JSON text of a list of {caption, bbox, bbox_type, image}; `caption` or `bbox` is absent where no tag needs it.

    Args:
        value: such a list, the text of one, or SWIFT's later form {ref, bbox, bbox_type, image_id}.
        messages: their tags are counted.
        num_images: of the row.

    Raises:
        RowError: malformed, a tag without its object, an image that the row does not have.
    """
    objects = literal(value, "objects", "objects")
    if isinstance(objects, Mapping):
        objects = _from_columns({name: one for name, one in objects.items() if one is not None})
    if not isinstance(objects, (list, tuple)):
        raise RowError(f"objects are a list of objects with caption and bbox, not {value!r:.80}", "objects")
    read = [_object(one, f"object {number}", num_images) for number, one in enumerate(objects, start=1)]
    for tag, field in (("<ref-object>", "caption"), ("<bbox>", "bbox")):
        tags = sum(message["content"].count(tag) for message in messages)
        usable = next((number for number, one in enumerate(read) if field not in one), len(read))
        if tags > usable:
            raise RowError(f"{tags} tags `{tag}` for {usable} objects with {field}", "objects")
    return dump_json(read, "objects", "objects") if read else None


def _from_columns(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Lists of captions, boxes and numbers of images, which need not be equally long, as one list of objects."""
    columns = {"ref": "caption", "bbox": "bbox", "image_id": "image"}
    for name in ("ref", "bbox", "image_id"):
        if not isinstance(value.get(name, []), (list, tuple)):
            raise RowError(f"{name} of objects is a list, not {value[name]!r:.80}", "objects")
    if unknown := value.keys() - {*columns, "bbox_type", "width", "height"}:
        raise RowError(
            f"objects have {quoted(sorted(unknown, key=str))}. Choose from: ref, bbox, bbox_type, image_id", "objects"
        )
    length = max((len(value[name]) for name in ("ref", "bbox") if name in value), default=0)
    kind = value.get("bbox_type", "real")
    return [
        {field: value[name][index] for name, field in columns.items() if name in value and index < len(value[name])}
        | {"bbox_type": kind}
        for index in range(length)
    ]


def _object(one: Any, what: str, num_images: int) -> dict[str, Any]:
    if not isinstance(one, Mapping):
        raise RowError(f"{what} is {one!r:.80}, not an object with caption and bbox", "objects")
    given = {name: value for name, value in one.items() if value is not None}
    kind = TYPES.get(str(given.get("bbox_type", "real")))
    if kind is None:
        choices = "real, norm_1000, norm_1"
        raise RowError(f"bbox_type of {what} is {given['bbox_type']!r:.80}. Choose from: {choices}", "objects")
    image = given.get("image", 0)
    if not isinstance(image, int) or isinstance(image, bool) or not 0 <= image < num_images:
        raise RowError(f"{what} is in image {image!r:.80}, counted from 0, but the row has {num_images}", "objects")
    read: dict[str, Any] = {}
    if "caption" in given:
        if not isinstance(given["caption"], str):
            raise RowError(f"caption of {what} is not text: {given['caption']!r:.80}", "objects")
        read["caption"] = given["caption"]
    if "bbox" in given:
        read["bbox"] = _box(given["bbox"], f"bbox of {what}", kind)
    return {**read, "bbox_type": kind, "image": image}


def _box(value: Any, what: str, kind: str) -> list[Any]:
    """[x, y], [x_min, y_min, x_max, y_max], or a list of such boxes."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, (list, tuple)) for one in value):
        return [_box(one, what, kind) if _is_flat(one) else _refuse(value, what) for one in value]
    if not _is_flat(value) or len(value) not in (2, 4):
        _refuse(value, what)
    if not all(0 <= number <= LARGEST[kind] for number in value):
        raise RowError(f"{what} is {list(value)!r:.80}: outside of what {kind} allows", "objects")
    if len(value) == 4 and (value[0] > value[2] or value[1] > value[3]):
        raise RowError(f"{what} is {list(value)!r:.80}, not [x_min, y_min, x_max, y_max]", "objects")
    return list(value)


def _is_flat(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(one, (int, float)) and not isinstance(one, bool) and math.isfinite(one) for one in value
    )


def _refuse(value: Any, what: str) -> Any:
    raise RowError(f"{what} is {value!r:.80}, not [x_min, y_min, x_max, y_max], [x, y] or a list of these", "objects")
