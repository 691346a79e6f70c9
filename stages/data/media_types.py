"""Tells what a file is from its first bytes: `media_type(data) == MediaType("images", ".png", "image/png")`."""

from __future__ import annotations

import base64
from typing import NamedTuple

__all__ = ["HEAD_BYTES", "MediaType", "data_uri", "media_type", "read_data_uri"]

HEAD_BYTES = 16


class MediaType(NamedTuple):
    """A kind of file.

    Attributes:
        column: images, videos or audios.
        suffix: the usual one.
        mime: for URIs.
    """

    column: str
    suffix: str
    mime: str


PNG = MediaType("images", ".png", "image/png")
JPEG = MediaType("images", ".jpg", "image/jpeg")
MP4 = MediaType("videos", ".mp4", "video/mp4")
MP3 = MediaType("audios", ".mp3", "audio/mpeg")
BEGINNINGS = {
    b"\x89PNG\r\n\x1a\n": PNG,
    b"\xff\xd8\xff": JPEG,
    b"GIF87a": MediaType("images", ".gif", "image/gif"),
    b"GIF89a": MediaType("images", ".gif", "image/gif"),
    b"BM": MediaType("images", ".bmp", "image/bmp"),
    b"II*\0": MediaType("images", ".tiff", "image/tiff"),
    b"MM\0*": MediaType("images", ".tiff", "image/tiff"),
    b"\x1aE\xdf\xa3": MediaType("videos", ".webm", "video/webm"),
    b"\0\0\1\xba": MediaType("videos", ".mpg", "video/mpeg"),
    b"FLV\1": MediaType("videos", ".flv", "video/x-flv"),
    b"ID3": MP3,
    b"fLaC": MediaType("audios", ".flac", "audio/flac"),
    b"OggS": MediaType("audios", ".ogg", "audio/ogg"),
    b"FORM": MediaType("audios", ".aiff", "audio/aiff"),
    b"#!AMR": MediaType("audios", ".amr", "audio/amr"),
    b"\xff\xf1": MediaType("audios", ".aac", "audio/aac"),
    b"\xff\xf9": MediaType("audios", ".aac", "audio/aac"),
    b"0&\xb2u": MediaType("videos", ".wmv", "video/x-ms-wmv"),
}
RIFF = {
    b"WEBP": MediaType("images", ".webp", "image/webp"),
    b"AVI ": MediaType("videos", ".avi", "video/x-msvideo"),
    b"WAVE": MediaType("audios", ".wav", "audio/wav"),
}
BRANDS = {
    b"avif": MediaType("images", ".avif", "image/avif"),
    b"heic": MediaType("images", ".heic", "image/heic"),
    b"M4A ": MediaType("audios", ".m4a", "audio/mp4"),
    b"qt  ": MediaType("videos", ".mov", "video/quicktime"),
}


def media_type(data: bytes) -> MediaType | None:
    """What begins with these bytes, of which 16 are enough; None for anything else."""
    if data[:4] == b"RIFF":
        return RIFF.get(data[8:12])
    if data[4:8] == b"ftyp":
        return BRANDS.get(data[8:12], MP4)
    if data[:1] == b"\xff" and len(data) > 1 and data[1] & 0xE0 == 0xE0 and data[1] != 0xFF and data[1] & 0x06:
        return MP3  # a frame without tags before it; in JPEG the second byte is d8
    return next((kind for beginning, kind in BEGINNINGS.items() if data.startswith(beginning)), None)


def data_uri(data: bytes) -> str:
    """The bytes as text that stands for a file."""
    kind = media_type(data)
    mime = kind.mime if kind else "application/octet-stream"
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def read_data_uri(text: str) -> bytes:
    """What a data: URI holds.

    Raises:
        ValueError: it is malformed, or not in base64.
    """
    head, comma, body = text.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ValueError("it does not begin with data:TYPE;base64,")
    return base64.b64decode(body, validate=True)
