"""Opens the images that a row names: `open_images(["media/ab….png"], folder)`, `rescale(image, 1_000_000)`.

An image is named by a path, relative to its artifact's folder, by an address (http, https), or by itself as a data URI.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from io import BytesIO
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING

from stages.data.rows import RowError
from stages.errors import StageFailed

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["TAGS", "local_path", "open_images", "rescale"]

TAGS = {"images": "<image>", "videos": "<video>", "audios": "<audio>"}
"""What stands in a text for a medium of each column."""

FETCH_SECONDS = 30
PASSING = (408, 429)
"""Refusals of a web server that another try may not meet: too slow, too many requests."""


def open_images(names: Sequence[str], folder: Path) -> list[Image]:
    """The images in RGB, turned as their cameras were held.

    Raises:
        RowError: one is missing, or is no image.
        StageFailed: the network, or a web server, does not give it now.
    """
    return [_open(name, f"images[{index}]", folder) for index, name in enumerate(names)]


def rescale(image: Image, max_pixels: int | None) -> Image:
    """The image, or a smaller one of the same shape whose pixels are `max_pixels` at most; None for no limit."""
    from PIL.Image import Resampling

    size = _size(image.width, image.height, max_pixels)
    return image if size == image.size else image.resize(size, Resampling.BICUBIC)


def local_path(name: str, what: str, folder: Path) -> Path:
    """Where a medium lies.

    Args:
        name: as the row has it.
        what: for messages.
        folder: of the artifact.

    Raises:
        RowError: there is no such file.
    """
    path = folder / name.removeprefix("file://")
    if not path.is_file():
        raise RowError(f"{what} {name!r:.200} is missing: no such file")
    return path


def _size(width: int, height: int, max_pixels: int | None) -> tuple[int, int]:
    if max_pixels is None or width * height <= max_pixels:
        return width, height
    scaled = max(1, isqrt(max_pixels * height // width))
    return max(1, min(max_pixels // scaled, scaled * width // height)), min(scaled, max_pixels)


def _open(name: str, what: str, folder: Path) -> Image:
    from PIL import Image, ImageOps, UnidentifiedImageError

    source = _source(name, what, folder)
    try:
        with Image.open(source) as file:
            return ImageOps.exif_transpose(file).convert("RGB")
    except UnidentifiedImageError:
        raise RowError(f"{what} {name!r:.200} is not an image") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RowError(f"{what} {name!r:.200} is a damaged image: {error}") from None


def _source(name: str, what: str, folder: Path) -> Path | BytesIO:
    if name.startswith("data:"):
        try:
            return BytesIO(base64.b64decode(name.partition("base64,")[2], validate=True))
        except binascii.Error as error:
            raise RowError(f"{what} is a data URI, but not base64: {error}") from None
    if name.startswith(("http://", "https://")):
        return BytesIO(_fetch(name, what))
    return local_path(name, what, folder)


def _fetch(address: str, what: str) -> bytes:
    import requests

    try:
        answer = requests.get(address, timeout=FETCH_SECONDS)
        answer.raise_for_status()
    except requests.RequestException as error:
        line = f"{what} {address:.200} cannot be fetched: {error}"
        status = 0 if error.response is None else error.response.status_code
        if isinstance(error, ValueError) or (400 <= status < 500 and status not in PASSING):
            raise RowError(line) from None
        # What the network does today must not decide which rows are learnt.
        raise StageFailed(line) from error
    return answer.content
