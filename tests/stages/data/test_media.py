from __future__ import annotations

import base64
import hashlib
import wave
from pathlib import Path

import pytest
from PIL import Image

from stages.data.media import MediaFinder, MediaKeeper
from stages.data.media_types import data_uri, media_type, read_data_uri
from stages.data.rows import RowError
from stages.errors import DataError

FTYP = b"\0\0\0\x18ftyp"


def picture(path: Path, color: str = "red") -> Path:
    Image.new("RGB", (8, 8), color).save(path)
    return path


def find(finder: MediaFinder, column: str, medium: str, *folders: Path) -> str:
    row = {column: [medium]}
    finder.find(row, folders)
    return row[column][0]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ("images", ".png")),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", ("images", ".jpg")),
        (b"GIF89a", ("images", ".gif")),
        (b"RIFF\x10\0\0\0WEBPVP8 ", ("images", ".webp")),
        (b"BM\x36\0\0\0", ("images", ".bmp")),
        (FTYP + b"avif", ("images", ".avif")),
        (FTYP + b"isom", ("videos", ".mp4")),
        (FTYP + b"qt  ", ("videos", ".mov")),
        (b"\x1aE\xdf\xa3", ("videos", ".webm")),
        (b"RIFF\x10\0\0\0AVI LIST", ("videos", ".avi")),
        (b"RIFF\x10\0\0\0WAVEfmt ", ("audios", ".wav")),
        (b"ID3\x04", ("audios", ".mp3")),
        (b"\xff\xfb\x90\x64", ("audios", ".mp3")),
        (b"\xff\xf1\x50\x80", ("audios", ".aac")),
        (b"OggS\0\2", ("audios", ".ogg")),
        (b"fLaC\0\0\0\x22", ("audios", ".flac")),
        (FTYP + b"M4A ", ("audios", ".m4a")),
        (b"RIFF\x10\0\0\0????", None),
        (b"<!DOCTYPE html>", None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_a_file_is_told_by_its_first_bytes(data: bytes, expected: tuple[str, str] | None) -> None:
    kind = media_type(data)
    assert (kind and (kind.column, kind.suffix)) == expected


def test_bytes_become_text_and_bytes_again() -> None:
    assert data_uri(b"GIF89a") == "data:image/gif;base64,R0lGODlh"
    assert read_data_uri("data:image/gif;base64,R0lGODlh") == b"GIF89a"
    for text in ("data:image/gif,R0lGODlh", "data:image/gif;base64", "data:image/gif;base64,???"):
        with pytest.raises(ValueError, match=r"base64|Only base64|padding|Non-base64"):
            read_data_uri(text)


def test_paths_are_found_where_they_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(second))
    shared, only = picture(first / "a.png"), picture(second / "b.png")
    picture(second / "a.png", "blue")
    finder = MediaFinder(tmp_path / "scratch")
    assert find(finder, "images", "a.png", first, second) == str(shared)
    assert find(finder, "images", "b.png", first, second) == str(only)
    assert find(finder, "images", str(only)) == str(only)
    assert find(finder, "images", f"file://{only}") == str(only)
    assert find(finder, "images", "~/b.png") == str(only)
    assert find(finder, "images", "https://host/c.png") == "https://host/c.png"


def test_what_a_row_holds_itself_becomes_one_file(tmp_path: Path) -> None:
    data = picture(tmp_path / "a.png").read_bytes()
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    finder = MediaFinder(tmp_path / "scratch")
    found = {find(finder, "images", uri), find(finder, "images", uri)}
    assert found == {str(tmp_path / "scratch" / f"{hashlib.sha256(data).hexdigest()}.png")}
    assert [path.read_bytes() for path in (tmp_path / "scratch").iterdir()] == [data]


def test_sounds_and_videos_pass_by_their_first_bytes(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(b"\0\0" * 80)
    (tmp_path / "v.mp4").write_bytes(FTYP + b"isom")
    finder = MediaFinder(tmp_path / "scratch")
    assert find(finder, "audios", "a.wav", tmp_path) == str(tmp_path / "a.wav")
    assert find(finder, "videos", "v.mp4", tmp_path) == str(tmp_path / "v.mp4")
    assert find(finder, "audios", "v.mp4", tmp_path) == str(tmp_path / "v.mp4")


@pytest.mark.parametrize(
    ("column", "medium", "reason"),
    [
        ("images", "gone.png", "image 1, 'gone.png', is not there: looked in FOLDER"),
        ("images", "/gone.png", "image 1, '/gone.png', is not there"),
        ("images", "~nobody/x.png", "image 1, '~nobody/x.png', is not there"),
        ("images", "a\0b.png", "image 1, 'a\\x00b.png', is not there"),
        ("images", "x" * 300, f"image 1, '{'x' * 199}, is not there"),
        ("images", "sub", "image 1, 'sub', is a folder"),
        ("images", "empty.png", "image 1, 'empty.png', is empty"),
        ("images", "text.png", "image 1, 'text.png', is not an image: it begins with b'<html>no'"),
        ("images", "half.png", "image 1, 'half.png', is a damaged image: "),
        ("images", "head.gif", "image 1, 'head.gif', is a damaged image: it begins as .gif, but cannot be read"),
        ("audios", "text.png", "audio 1, 'text.png', is not a sound: it begins with b'<html>no'"),
        ("videos", "whole.png", "video 1, 'whole.png', is not a video: it begins with b'\\x89PNG\\r\\n\\x1a\\n'"),
        ("images", "data:image/png;base64,R0lGODl", "image 1 is no data: URI in base64: "),
        ("images", "data:text/html;base64,PGh0bWw+", "image 1, 'data:text/html;base64,PGh0bWw+…', is not an image"),
    ],
)
def test_a_medium_that_is_no_use_is_named(tmp_path: Path, column: str, medium: str, reason: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("<html>no</html>")
    whole = picture(tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) - 20])
    (tmp_path / "head.gif").write_bytes(b"GIF89a")
    with pytest.raises(RowError) as caught:
        find(MediaFinder(tmp_path / "scratch"), column, medium, tmp_path / "elsewhere", tmp_path)
    assert str(caught.value).startswith(reason.replace("FOLDER", str(tmp_path)))
    assert caught.value.kind == "media"
    assert "\n" not in str(caught.value)


def test_a_relative_path_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r"^image 1, 'a\.png', is relative to no known folder$"):
        find(MediaFinder(tmp_path), "images", "a.png")


def test_files_are_kept_once_under_the_name_of_their_content(tmp_path: Path) -> None:
    one, same = picture(tmp_path / "one.PNG"), tmp_path / "same"
    same.write_bytes(one.read_bytes())
    odd = tmp_path / "clip.XYZ"
    odd.write_bytes(b"?")
    (tmp_path / "out").mkdir()
    keeper = MediaKeeper(tmp_path / "out")
    digest = hashlib.sha256(one.read_bytes()).hexdigest()
    assert keeper.keep(str(one)) == keeper.keep(str(same)) == f"media/{digest}.png"
    assert keeper.keep(str(odd)) == f"media/{hashlib.sha256(b'?').hexdigest()}.xyz"
    assert keeper.keep("http://host/x.png") == "http://host/x.png"
    assert (tmp_path / "out" / "media" / f"{digest}.png").read_bytes() == one.read_bytes()
    assert len(list((tmp_path / "out" / "media").iterdir())) == 2


def test_a_file_that_went_away_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^/gone\.png can no longer be read: No such file or directory$"):
        MediaKeeper(tmp_path).keep("/gone.png")
    assert list((tmp_path / "media").iterdir()) == []
