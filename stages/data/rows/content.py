"""What a turn says, as text; media inside of it become tags: `read_content(parts, "content of message 1", media)`."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from stages.data.media_types import data_uri
from stages.data.rows.columns import MEDIA
from stages.data.rows.values import Message, RowError, literal, text

__all__ = ["TAGS", "add_missing_tags", "read_content", "read_media"]

TAGS = {name: f"<{name.removesuffix('s')}>" for name in MEDIA}
PARTS = ("text", "image", "image_url", "video", "video_url", "audio", "audio_url", "input_audio")
PLACES = ("url", "path", "base64", "bytes", "data")


def read_content(value: Any, what: str, media: dict[str, list[str]]) -> str:
    """Text; a list of parts is joined, and what its media are is added to `media`."""
    if isinstance(value, str):
        return value
    if not isinstance(value, (list, tuple)):
        return text(value, what)
    words = []
    for number, part in enumerate(value, start=1):
        if isinstance(part, str):
            words.append(part)
        elif isinstance(part, Mapping) and part.get("type") in PARTS:
            words.append(_part(part, f"part {number} of {what}", media))
        else:
            choices = ", ".join(PARTS)
            raise RowError(f"part {number} of {what} is {part!r:.80}, not an object of type {choices}", "wrong type")
    return "".join(words)


def _part(part: Mapping[str, Any], what: str, media: dict[str, list[str]]) -> str:
    kind = str(part["type"])
    if kind == "text":
        return text(part.get("text", part.get("value")), what)
    name = f"{kind.removeprefix('input_').removesuffix('_url')}s"
    value = part.get(kind)
    if value is None:
        value = part.get("source")
    if value is None:
        value = next(({place: part[place]} for place in PLACES if part.get(place) is not None), None)
    if value is not None:
        media.setdefault(name, []).append(_medium(value, what))
    return TAGS[name]


def read_media(value: Any, name: str) -> list[str]:
    """The column `images`, `videos` or `audios`: paths, URLs and data: URIs."""
    if isinstance(value, str) and value.startswith("["):  # a list in CSV
        value = literal(value, name, "media")
    items = value if isinstance(value, (list, tuple)) else [value]
    return [_medium(one, f"{name.removesuffix('s')} {number}") for number, one in enumerate(items, start=1)]


def _medium(value: Any, what: str) -> str:
    """A path, a URL or a data: URI. Bytes go before the path beside them, which often names no file any more."""
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, (bytes, bytearray)) and value:
        return data_uri(bytes(value))
    if isinstance(value, Mapping):
        for place in ("bytes", "data", "base64"):
            if (held := value.get(place)) is not None:
                return _medium(held if isinstance(held, (bytes, bytearray)) else _decoded(held, what), what)
        for place in ("path", "url"):
            if value.get(place) is not None:
                return _medium(value[place], what)
    raise RowError(f"{what} is not a path, a URL, bytes, or an object with one of them: {value!r:.80}", "media")


def _decoded(value: Any, what: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError):
        raise RowError(f"{what} is not in base64: {value!r:.80}", "media") from None


def add_missing_tags(messages: Sequence[Message], media: Mapping[str, list[str]]) -> None:
    """Gives every medium its tag: those that lack one come first in the first turn after the system's.

    Raises:
        RowError: there are more tags than media.
    """
    first = messages[1] if messages[0]["role"] == "system" and len(messages) > 1 else messages[0]
    for name in ("images", "audios", "videos"):
        tag, given = TAGS[name], len(media.get(name, ()))
        tags = sum(message["content"].count(tag) for message in messages)
        if tags > given:
            raise RowError(f"{tags} tags `{tag}` for {given} {name}", "media")
        if tags < given:
            first["content"] = tag * (given - tags) + first["content"]
