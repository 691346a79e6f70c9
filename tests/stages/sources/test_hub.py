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
RUN = """
import json, sys
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

stage = get_stage(sys.argv[1])
try:
    store = open_store()
    result = run_stage(stage, stage.arguments(**json.loads(sys.argv[2])), {}, store=store, reporter=Told())
    files = [file.path for file in store.tree(result.artifact).files]
    answer = {"status": result.status, "metrics": dict(result.metrics), "told": Told.texts[-1:]}
    print(json.dumps({**answer, "files": files}))
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


def entries_of(files: dict[str, bytes]) -> list[dict[str, object]]:
    return [
        {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for file, content in files.items()
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
            self.hugging_face(path)

    def do_POST(self) -> None:
        asked = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        files = self.server.repositories["hf datasets owner/rows"]
        self.answer_json([entry for entry in entries_of(files) if entry["path"] in asked.get("paths", [])])

    def hugging_face(self, path: str) -> None:
        kind = "datasets" if path.startswith(("/api/datasets/", "/datasets/")) else "models"
        words = path.removeprefix("/api").removeprefix(f"/{kind}").strip("/").split("/")
        name, rest = "/".join(words[:2]), words[2:]
        files = self.server.repositories.get(f"hf {kind} {name}")
        if files is None:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif rest[:1] == ["revision"] and rest[1] not in ("main", "v1", COMMIT):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        elif rest[:1] == ["resolve"] and "/".join(rest[2:]) not in files:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        elif rest[:1] == ["resolve"]:
            content = files["/".join(rest[2:])]
            self.answer(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": rest[1]})
        elif rest[:1] == ["tree"]:
            self.answer_json(entries_of(files))
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
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def run(hubs: Hubs | None, tmp_path: Path, stage: str, **arguments: object) -> dict[str, object]:
    """The stage in a process of its own, as the hubs' libraries read their addresses when they are imported."""
    url = hubs.url if hubs else "http://127.0.0.1:9"
    environment = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "MODELSCOPE_ENDPOINT": url,
        "MODELSCOPE_CACHE": str(tmp_path / "ms"),
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN, stage, json.dumps(arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


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
