"""Both hubs' HTTP interfaces, as far as fetching needs them, served from this machine to the hubs' own libraries."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
COMMIT = "a" * 40
OLDER = "b" * 40
DATA = b'{"query": "q", "response": "r"}\n'
CARD = b"""---
configs:
- config_name: en
  data_files: en/*.jsonl
- config_name: zh
  data_files: [{split: train, path: zh/x.jsonl}, {split: test, path: held/x.jsonl}]
---
"""
MANY = {
    "README.md": CARD,
    **{f"{name}/x.jsonl": DATA.replace(b'"q"', f'"{name}"'.encode()) * 3 for name in ("en", "zh", "held")},
}
RUN = """
import json, os, sys
from pathlib import Path
from stages.artifacts.store import open_store
from stages.errors import MartletError
from stages.registry import get_stage
from stages.run import run_stage

class Told:
    texts = []
    def progress(self, done, total, text): self.texts.append(text)
    def metrics(self, *_): pass
    def image(self, *_): pass
    def markdown(self, *_): pass

store = open_store()
for name, arguments in json.loads(sys.argv[1]):
    stage = get_stage(name)
    try:
        result = run_stage(stage, stage.arguments(**arguments), {}, store=store, reporter=Told())
        files = [file.path for file in store.tree(result.artifact).files]
        answer = {"status": result.status, "metrics": dict(result.metrics), "told": Told.texts[-1:], "files": files}
        print(json.dumps({**answer, "digest": result.artifact.digest}))
        if out := os.environ.get("MARTLET_TEST_OUT"):
            store.copy_out(result.artifact, Path(out))
    except MartletError as error:
        print(json.dumps({"error": type(error).__name__, "line": str(error)}))
"""


class Hubs(http.server.ThreadingHTTPServer):
    """Repositories by kind and id, each a mapping of names to contents, and what was asked of them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def entries_of(files: dict[str, bytes], under: str = "", recursive: bool = True) -> list[dict[str, object]]:
    """What the hub lists of a folder: the files below it, or those in it and its folders."""
    prefix = f"{under}/" if under else ""
    inside = {path: content for path, content in files.items() if path.startswith(prefix)}
    folders = {prefix + path.removeprefix(prefix).split("/")[0] for path in inside if "/" in path.removeprefix(prefix)}
    return [{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders) if not recursive] + [
        {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for path, content in inside.items()
        if recursive or "/" not in path.removeprefix(prefix)
    ]


class Answer(http.server.BaseHTTPRequestHandler):
    server: Hubs

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path, _, query = self.path.partition("?")
        if path.startswith("/api/v1/"):
            self.modelscope(path.removeprefix("/api/v1/"), dict(urllib.parse.parse_qsl(query)))
        else:
            self.hugging_face(path, dict(urllib.parse.parse_qsl(query)))

    def do_POST(self) -> None:
        asked = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        name = "/".join(self.path.split("/")[3:5])
        self.server.asked.append(self.path)
        files = self.server.repositories[f"hf datasets {name}"]
        there = [*entries_of(files), *entries_of(files, recursive=False)]
        found = {str(entry["path"]): entry for entry in there if entry["path"] in asked.get("paths", [])}
        self.answer_json(list(found.values()))

    def hugging_face(self, path: str, query: dict[str, str]) -> None:
        kind = "datasets" if path.startswith(("/api/datasets/", "/datasets/")) else "models"
        words = path.removeprefix("/api").removeprefix(f"/{kind}").strip("/").split("/")
        name, rest = "/".join(words[:2]), words[2:]
        files = self.server.repositories.get(f"hf {kind} {name}")
        if files is None:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif rest[:1] == ["revision"] and rest[1] not in ("main", "v1", COMMIT, OLDER):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        elif rest[:1] == ["resolve"] and "/".join(rest[2:]) not in files:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        elif rest[:1] == ["resolve"]:
            content = files["/".join(rest[2:])]
            self.answer(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": rest[1]})
        elif rest[:1] == ["tree"]:
            recursive = query.get("recursive", "").lower() == "true"
            self.answer_json(entries_of(files, urllib.parse.unquote("/".join(rest[2:])), recursive))
        else:
            siblings = [{"rfilename": file} for file in files]
            self.answer_json({"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "gated": False})

    def modelscope(self, path: str, query: dict[str, str]) -> None:
        kind, owner, name, *_ = path.split("/")
        files = self.server.repositories.get(f"ms {kind} {owner}/{name}")
        if files is None or query.get("Revision") == "nope":
            self.answer(404, json.dumps({"Code": 404, "Message": "not found", "Success": False}).encode(), {})
        elif "FilePath" in query:
            self.answer(200, files[query["FilePath"]], {})
        else:
            entries = [
                {
                    "Path": file,
                    "Name": file,
                    "Type": "blob",
                    "Size": len(content),
                    "Sha256": hashlib.sha256(content).hexdigest(),
                    "Revision": COMMIT if file == "config.json" else OLDER,
                    "CommittedDate": 200 if file == "config.json" else 100,
                }
                for file, content in files.items()
            ]
            self.answer_json({"Code": 200, "Success": True, "Data": {"Files": entries}})

    def answer_json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hubs(tiny_model: Path) -> Iterator[Hubs]:
    server = Hubs()
    model = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    others = {"README.md": b"#", "pytorch_model.bin": b"x" * 1000, "onnx/model.onnx": b"x"}
    for hub in ("hf", "ms"):
        server.repositories[f"{hub} models owner/tiny"] = {**model, **others}
        server.repositories[f"{hub} models owner/pickled"] = {"config.json": b"{}", "pytorch_model.bin": b"x"}
        server.repositories[f"{hub} datasets owner/rows"] = {"train.jsonl": DATA * 5}
        server.repositories[f"{hub} datasets owner/many"] = dict(MANY)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def environment_of(hubs: Hubs | None, tmp_path: Path) -> dict[str, str]:
    """What leads the hubs' libraries to the server."""
    url = hubs.url if hubs else "http://127.0.0.1:9"
    return {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "MODELSCOPE_ENDPOINT": url,
        "MODELSCOPE_CACHE": str(tmp_path / "ms"),
        "NO_PROXY": "127.0.0.1",
    }


def run(hubs: Hubs | None, tmp_path: Path, stage: str, **arguments: object) -> dict[str, object]:
    """The stage in a process of its own, as the hubs' libraries read their addresses when they are imported."""
    return run_all(hubs, tmp_path, [(stage, arguments)])[0]


def run_all(hubs: Hubs | None, tmp_path: Path, asked: list[tuple[str, dict[str, object]]]) -> list[dict[str, object]]:
    """Several stages, one after the other in the same process."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(asked)],
        env=environment_of(hubs, tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(answers) == len(asked), done.stderr
    return answers


@pytest.mark.parametrize(
    ("arguments", "revision"),
    [
        ({"model": "owner/tiny", "use_hf": True}, COMMIT),
        ({"model": "hf::owner/tiny", "model_revision": "v1"}, COMMIT),
        ({"model": "owner/tiny"}, COMMIT),
        ({"model": "ms::owner/tiny", "model_revision": OLDER, "use_hf": True}, OLDER),
    ],
)
def test_a_model_comes_from_the_hub_that_was_chosen(
    hubs: Hubs, tmp_path: Path, tiny_model: Path, arguments: dict[str, object], revision: str
) -> None:
    answer = run(hubs, tmp_path, "download", **arguments)
    assert answer["files"] == sorted(path.name for path in tiny_model.iterdir()), answer
    assert answer["status"] == "ran"
    metrics = answer["metrics"]
    assert isinstance(metrics, dict)
    assert (metrics["name"], metrics["revision"]) == ("owner/tiny", revision)
    assert not any("pytorch_model.bin" in path for path in hubs.asked)
    assert "owner/tiny: " in str(answer["told"])
    assert run(hubs, tmp_path, "download", **arguments)["status"] == "cached"


@pytest.mark.parametrize(
    ("arguments", "error", "line"),
    [
        ({"model": "hf::owner/none"}, "ModelError", "Hugging Face model 'owner/none' does not exist"),
        ({"model": "owner/none"}, "ModelError", "ModelScope model 'owner/none' does not exist"),
        ({"model": "hf::owner/tiny", "model_revision": "nope"}, "ModelError", "has no revision 'nope'"),
        ({"model": "hf::owner/pickled"}, "ModelError", "owner/pickled keeps its weights as pickles"),
        ({"model": "ms::owner/pickled"}, "ModelError", "owner/pickled keeps its weights as pickles"),
    ],
)
def test_what_the_hub_does_not_have_is_one_clear_line(
    hubs: Hubs, tmp_path: Path, arguments: dict[str, object], error: str, line: str
) -> None:
    answer = run(hubs, tmp_path, "download", **arguments)
    assert answer["error"] == error, answer
    assert line in str(answer["line"])
    assert "\n" not in str(answer["line"])


@pytest.mark.parametrize("model", ["hf::owner/tiny", "ms::owner/tiny"])
def test_a_hub_that_cannot_be_reached_may_be_tried_again(tmp_path: Path, model: str) -> None:
    answer = run(None, tmp_path, "download", model=model)
    assert (answer["error"], "cannot be reached" in str(answer["line"])) == ("StageFailed", True), answer


def test_offline_the_hubs_own_cache_is_used(
    hubs: Hubs, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hf" / "hub" / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for path in tiny_model.iterdir():
        (snapshot / path.name).symlink_to(path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    answer = run(hubs, tmp_path, "download", model="hf::owner/tiny")
    assert answer.get("status") == "ran", answer
    absent = run(hubs, tmp_path, "download", model="hf::owner/other")
    assert absent["error"] == "ModelError"
    assert "HF_HUB_OFFLINE is set" in str(absent["line"])
    assert hubs.asked == []


@pytest.mark.parametrize("dataset", ["ms::owner/rows", "hf::owner/rows"])
def test_a_dataset_comes_from_a_hub(hubs: Hubs, tmp_path: Path, dataset: str) -> None:
    answer = run(hubs, tmp_path, "preprocess", dataset=[f"{dataset}#4"], split_dataset_ratio=0)
    assert answer.get("metrics") == {"train_rows": 4, "validation_rows": 0, "rows_read": 5, "rows_dropped": 0}, answer


def test_equal_rows_of_two_commits_are_one_dataset(hubs: Hubs, tmp_path: Path) -> None:
    """So that whatever follows is a hit: its key holds the dataset's digest, not the commit."""
    asked = [("preprocess", {"dataset": [f"hf::owner/rows@{commit}"]}) for commit in (COMMIT, OLDER)]
    first, second = run_all(hubs, tmp_path, asked)  # type: ignore[arg-type]
    assert (first["status"], second["status"]) == ("ran", "ran"), (first, second)
    assert first["digest"] == second["digest"]


ZH = {"name": "both", "subset": "zh", "split": ["train", "test"]}
REGISTERED = {"subsets": [ZH, {"subset": "en", "is_weak_subset": True}], "columns": {"q": "response", "r": "query"}}
SUBSETS = [
    ("hf::owner/many:en/zh", 6),
    ("ms::owner/many:all", 6),
    ("HF::owner/many:all#5", 5),
    ("registered:all", 6),
    ("hf::owner/many", "hf::owner/many has the subsets en, zh: name those to read after a colon"),
    ("ms::owner/many", "ms::owner/many has the subsets en, zh: name those to read after a colon"),
    ("hf::owner/many:fr", "hf::owner/many has no subset 'fr'. It has: en, zh"),
    ("ms::owner/many:en/fr", "ms::owner/many has no subset 'fr'. It has: en, zh"),
    ("registered:fr", "registered has no subset 'fr'. It has: both, en"),
    ("hf::owner/broken", "hf::owner/broken cannot be read: JSON parse error: Missing a colon after a name of object"),
    ("hf::owner/none", "Hugging Face dataset 'owner/none' does not exist"),
]


def test_subsets_of_a_hub(hubs: Hubs, tmp_path: Path) -> None:
    info = [json.dumps([{"dataset_name": "registered", "hf_dataset_id": "owner/other", **REGISTERED}])]
    other = {name: content.replace(b"query", b"r").replace(b"response", b"q") for name, content in MANY.items()}
    hubs.repositories["hf datasets owner/other"] = other
    hubs.repositories["hf datasets owner/broken"] = {"train.jsonl": DATA * 3 + b'{"query" "q"}\n'}
    arguments = {"split_dataset_ratio": 0, "custom_dataset_info": info}
    asked = [("preprocess", {**arguments, "dataset": [dataset]}) for dataset, _ in SUBSETS]
    answers = run_all(hubs, tmp_path, asked)
    for (dataset, expected), answer in zip(SUBSETS, answers, strict=True):
        if isinstance(expected, int):
            metrics = answer.get("metrics")
            assert isinstance(metrics, dict), (dataset, answer)
            assert metrics["train_rows"] == expected, dataset
        else:
            assert str(answer.get("line", answer)).startswith(expected), dataset


def test_downloads_are_kept_or_forced(hubs: Hubs, tmp_path: Path) -> None:
    """The hub's cache keeps files; what the datasets library made of them is only taken up where that was asked for."""

    def fetches(seed: int, **arguments: object) -> int:
        hubs.asked.clear()
        answer = run(hubs, tmp_path, "preprocess", dataset=["hf::owner/rows"], data_seed=seed, **arguments)
        assert answer.get("status") == "ran", answer
        return sum("/resolve/" in path and path.endswith("train.jsonl") for path in hubs.asked)

    first = fetches(0)
    assert fetches(1) < first
    assert fetches(2, download_mode="force_redownload") >= first
    assert not any((tmp_path / "hf" / "datasets").rglob("*.arrow"))
    fetches(3, load_from_cache_file=True)
    assert any((tmp_path / "hf" / "datasets").rglob("*.arrow"))


STREAM = """
import sys
from pathlib import Path
from stages.data.stream import RowStream
stream = RowStream.open(Path(sys.argv[1]))
whole = list(stream.rows())
assert list(stream.rows(2)) == [one for one in whole if one[0] > 2]
print(len(whole))
"""


@pytest.mark.parametrize(
    ("dataset", "rows", "files"),
    [("hf::owner/many:en/zh#5", 4, ["stream.json", "validation.parquet"]), ("ms::owner/many:en/zh#5", 4, None)],
)
def test_a_hub_is_streamed(
    hubs: Hubs, tmp_path: Path, dataset: str, rows: int, files: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From Hugging Face at the commit, when rows are read; from ModelScope with the files in the artifact."""
    monkeypatch.setenv("MARTLET_TEST_OUT", str(tmp_path / "out"))
    answer = run(hubs, tmp_path, "preprocess", dataset=[dataset], streaming=True, split_dataset_ratio=0.2)
    assert answer.get("status") == "ran", answer
    assert files is None or answer["files"] == files
    if files is None:
        assert "files/0/zh/x.jsonl" in answer["files"]  # type: ignore[operator]
        hubs.repositories.clear()
    code = [sys.executable, "-c", STREAM, str(tmp_path / "out")]
    environment = environment_of(hubs, tmp_path)
    done = subprocess.run(code, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(rows)], done.stderr
