"""A hub on this machine that keeps what it is sent: enough of Hugging Face's and ModelScope's API for their clients."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

TOKEN = "hf_Secret0123456789"
COMMIT = "c0ffee" * 6 + "c0ff"


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


@dataclass
class HubState:
    """What the hub holds, what it was asked, and which answers are to go wrong.

    Attributes:
        token: the one that it takes.
        commit: the id of every commit.
        failures: path → the statuses of the next answers there, before it works again.
    """

    url: str = ""
    token: str = TOKEN
    commit: str = COMMIT
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    failures: dict[str, list[int]] = field(default_factory=dict)


class Handler(BaseHTTPRequestHandler):
    """One request; `self.server.state` is shared."""

    protocol_version = "HTTP/1.1"
    state: HubState

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def handle_any(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.state.requests.append(f"{self.command} {path}")
        for part, statuses in self.state.failures.items():
            if part in path and statuses:
                self.answer({"error": "injected"}, statuses.pop(0))
                return
        if not path.startswith("/blob/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid credentials", "Code": 401, "Message": "bad token"}, 401)
            return
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                method(self, body, *match.groups())
                return
        self.answer({"error": f"no route {self.command} {path}"}, 404)

    do_GET = do_POST = do_PUT = handle_any  # noqa: N815

    def answer(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    # Hugging Face

    def hf_whoami(self, body: bytes) -> None:
        self.answer({"name": "me", "type": "user", "auth": {}})

    def hf_create(self, body: bytes) -> None:
        wanted = json.loads(body)
        repo_id = "/".join(filter(None, (wanted.get("organization") or "me", wanted["name"])))
        if repo_id in self.state.repositories:
            self.answer({"error": "You already created this model repo", "url": f"{self.state.url}/{repo_id}"}, 409)
            return
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.state.repositories[repo_id] = Repository(bool(private))
        self.answer({"url": f"{self.state.url}/{repo_id}", "name": repo_id, "id": repo_id})

    def hf_info(self, body: bytes, repo_id: str) -> None:
        if repo_id not in self.state.repositories:
            self.answer({"error": "Repository not found"}, 404)
            return
        private = self.state.repositories[repo_id].private
        self.answer({"id": repo_id, "modelId": repo_id, "private": private, "sha": COMMIT, "siblings": [], "tags": []})

    def hf_preupload(self, body: bytes, repo_id: str) -> None:
        names = [file["path"] for file in json.loads(body)["files"]]
        answer = [
            {"path": name, "uploadMode": "lfs" if name.endswith(".safetensors") else "regular", "shouldIgnore": False}
            for name in names
        ]
        self.answer({"files": answer})

    def lfs_batch(self, body: bytes, repo_id: str) -> None:
        objects = [
            {
                "oid": one["oid"],
                "size": one["size"],
                "authenticated": True,
                "actions": {"upload": {"href": f"{self.state.url}/blob/{one['oid']}", "header": {}}},
            }
            for one in json.loads(body)["objects"]
            if one["oid"] not in self.state.blobs
        ]
        self.answer(
            {"transfer": "basic", "objects": objects, "Code": 200, "Success": True, "Data": {"objects": objects}}
        )

    def put_blob(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.state.blobs[oid] = body
        self.answer({})

    def hf_commit(self, body: bytes, repo_id: str) -> None:
        repository = self.state.repositories[repo_id]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                repository.messages.append(value["summary"])
            elif entry["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repository.files[value["path"]] = self.state.blobs[value["oid"]]
        url = f"{self.state.url}/{repo_id}/commit/{COMMIT}"
        self.answer({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})

    # ModelScope

    def ms_whoami(self, body: bytes) -> None:
        user = {"username": "me", "name": "me", "id": 1}
        self.answer({"success": True, "data": user, "Code": 200, "Data": user})

    def ms_create(self, body: bytes) -> None:
        wanted = json.loads(body)
        repo_id = f"{wanted.get('Path')}/{wanted.get('Name')}"
        if repo_id in self.state.repositories:
            self.answer({"Code": 10020101001, "Message": "repository already exists", "Success": False}, 400)
            return
        self.state.repositories[repo_id] = Repository(wanted["Visibility"] == 1)
        self.answer({"Code": 200, "Success": True, "Data": {"Path": wanted.get("Path"), "Name": wanted.get("Name")}})

    def ms_info(self, body: bytes, repo_id: str) -> None:
        repository = self.state.repositories.get(repo_id)
        if repository is None:
            self.answer({"Code": 10010205001, "Message": "record not found", "Success": False}, 404)
            return
        owner, _, name = repo_id.partition("/")
        data = {"Id": 7, "Path": owner, "Name": name, "Visibility": 1 if repository.private else 5}
        self.answer({"Code": 200, "Success": True, "Data": data, "success": True, "data": data})

    def ms_commit(self, body: bytes, repo_id: str) -> None:
        repository = self.state.repositories[repo_id]
        wanted = json.loads(body)
        repository.messages.append(wanted.get("commit_message"))
        for action in wanted["actions"]:
            if action["type"] == "lfs":
                repository.files[action["path"]] = self.state.blobs[action["sha256"]]
            else:
                repository.files[action["path"]] = base64.b64decode(action["content"])
        self.answer({"Code": 200, "Success": True, "Data": {"Id": COMMIT, "Message": wanted.get("commit_message")}})


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (r"GET /api/whoami-v2", Handler.hf_whoami),
    (r"POST /api/repos/create", Handler.hf_create),
    (rf"GET /api/models/{REPO}", Handler.hf_info),
    (rf"GET /api/models/{REPO}/revision/\w+", Handler.hf_info),
    (rf"POST /api/models/{REPO}/preupload/main", Handler.hf_preupload),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (r"PUT /blob/(\w+)", Handler.put_blob),
    (rf"POST /api/models/{REPO}/commit/main", Handler.hf_commit),
    (r"GET /openapi/v1/users/me", Handler.ms_whoami),
    (r"POST /api/v1/models", Handler.ms_create),
    (rf"GET /api/v1/models/{REPO}", Handler.ms_info),
    (rf"GET /openapi/v1/models/{REPO}", Handler.ms_info),
    (rf"POST /api/v1/repos/models/{REPO}/info/lfs/objects/batch", Handler.lfs_batch),
    (rf"POST /api/v1/repos/models/{REPO}/commit/master", Handler.ms_commit),
]


@pytest.fixture
def hub() -> Iterator[HubState]:
    """A hub on a free port."""
    state = HubState()
    handler = type("BoundHandler", (Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
