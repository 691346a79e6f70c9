"""What a user reads when a remote store cannot be used: one line, soon, and nothing secret in it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from obstore.exceptions import BaseError

from stages.artifacts.store import open_store
from stages.errors import MartletError, MissingPackage, StoreError, UserError

from .conftest import Bucket, credentials

SECRET = "s3cr3t-of-the-test"


class Refusing(BaseHTTPRequestHandler):
    """A server that answers every request with one error of S3's, which quotes what was signed."""

    status, code = 403, "SignatureDoesNotMatch"

    def do_GET(self) -> None:
        body = (
            f"<Error><Code>{self.code}</Code><Message>no</Message><AWSAccessKeyId>martlet-test</AWSAccessKeyId>"
            f"<StringToSign>AWS4-HMAC-SHA256 {SECRET}</StringToSign></Error>"
        ).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_HEAD = do_GET  # noqa: N815 - the names that http.server looks for

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    monkeypatch.setenv("MARTLET_CACHE", str(tmp_path / "cache"))
    for name, value in credentials("http://127.0.0.1:1").items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def refused(location: str, within_seconds: float = 10.0) -> MartletError:
    began = time.monotonic()
    with pytest.raises(MartletError) as caught:
        open_store(location)
    assert time.monotonic() - began < within_seconds
    text = str(caught.value)
    assert "\n" not in text
    assert SECRET not in text
    assert not isinstance(caught.value.__cause__, BaseError)
    return caught.value


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("s3://", "'s3://' names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("s3://UPPER/x", "'s3://UPPER/x' names no bucket"),
        ("s3://bucket/a/../b", "has a . or .. in its prefix"),
        ("gs://bucket/x", "a store at gs:// is not supported. Choose from: a folder's path, s3://bucket/prefix"),
        ("az://bucket/x", "a store at az:// is not supported"),
        (f"s3://key:{SECRET}@bucket/x", "the address of a store holds no credentials"),
        (f"s3://bucket/x?secret={SECRET}", "the address of a store holds no credentials"),
    ],
)
def test_addresses(environment: pytest.MonkeyPatch, location: str, message: str) -> None:
    error = refused(location)
    assert message in str(error)
    assert error.exit_code == 2


def test_a_server_that_is_not_there(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error = refused("s3://bucket/x")
    assert isinstance(error, StoreError)
    assert str(error) == (
        "the store s3://bucket/x: the connection is refused: is the server running, is AWS_ENDPOINT_URL right?"
    )
    assert not (tmp_path / "cache").exists()


def test_a_server_that_does_not_answer(environment: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "the server does not answer" in str(refused("s3://bucket/x"))


def test_a_name_that_is_not_known(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid")
    assert "the endpoint's name is not known: check AWS_ENDPOINT_URL" in str(refused("s3://bucket/x"))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"AWS_ALLOW_HTTP": ""}, "AWS_ENDPOINT_URL is http: set AWS_ALLOW_HTTP=true"),
        ({"AWS_ENDPOINT_URL": "nonsense"}, "AWS_ENDPOINT_URL is no URL: give https://host"),
        ({"AWS_ENDPOINT_URL": f"http://key:{SECRET}@127.0.0.1:1"}, "AWS_ENDPOINT_URL holds credentials"),
        ({"AWS_ACCESS_KEY_ID": None}, "there is no access key: set AWS_ACCESS_KEY_ID"),
        ({"AWS_CA_BUNDLE": "/no/such/file"}, "AWS_CA_BUNDLE=/no/such/file cannot be read: No such file"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "there is no secret key: set AWS_SECRET_ACCESS_KEY"),
        (
            {
                "AWS_ACCESS_KEY_ID": None,
                "AWS_SECRET_ACCESS_KEY": None,
                "AWS_METADATA_ENDPOINT": "http://127.0.0.1:1",
            },
            "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
    ],
)
def test_what_the_environment_lacks(
    environment: pytest.MonkeyPatch, variables: dict[str, str | None], message: str
) -> None:
    for name, value in variables.items():
        if value is None:
            environment.delenv(name)
        else:
            environment.setenv(name, value)
    assert message in str(refused("s3://bucket/x"))


def test_a_bucket_that_is_not_there(environment: pytest.MonkeyPatch, bucket: Bucket) -> None:
    environment.setenv("AWS_ENDPOINT_URL", bucket.server.url)
    error = refused("s3://no-such-bucket/x")
    assert isinstance(error, UserError)
    assert "NoSuchBucket: there is no such bucket: make it, or correct MARTLET_STORE" in str(error)


@pytest.fixture
def refusing(environment: pytest.MonkeyPatch) -> Iterator[type[Refusing]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield Refusing
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "SignatureDoesNotMatch", "the secret key is wrong: check AWS_SECRET_ACCESS_KEY"),
        (403, "InvalidAccessKeyId", "the server does not know the access key: check AWS_ACCESS_KEY_ID"),
        (403, "AccessDenied", "these credentials may not do this"),
        (503, "SlowDown", "the server answered SlowDown"),
    ],
)
def test_a_server_that_refuses(
    refusing: type[Refusing], monkeypatch: pytest.MonkeyPatch, status: int, code: str, message: str
) -> None:
    monkeypatch.setattr(refusing, "status", status)
    monkeypatch.setattr(refusing, "code", code)
    error = refused("s3://bucket/x")
    assert isinstance(error, StoreError)
    assert message in str(error)


def test_without_obstore(environment: pytest.MonkeyPatch) -> None:
    environment.setitem(sys.modules, "obstore", None)
    error = refused("s3://bucket/x")
    assert isinstance(error, MissingPackage)
    assert "needs the package obstore, which is not installed" in str(error)


def test_a_local_store_does_not_load_obstore(tmp_path: Path) -> None:
    code = (
        "import sys; from stages.artifacts.store import open_store; import stages.run; open_store(sys.argv[1]);"
        "print([name for name in sys.modules if name.startswith(('obstore', 'stages.artifacts.remote'))])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_a_cache_that_cannot_be_made_says_which_variable(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MARTLET_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError, match=r"the cache .*Not a directory"):
        open_store(bucket.location)
