"""A bucket in a few calls, by obstore: `Objects(bucket, prefix).get("actions/ab.json")`.

Endpoint, region and credentials come from the usual AWS_* variables alone. No error and no line of a log quotes what
a server answered beyond its error code: such answers may hold parts of a signature.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from stages.artifacts.disk import write_all
from stages.artifacts.hashing import in_threads
from stages.errors import MissingPackage, StoreError, UserError

if TYPE_CHECKING:
    from obstore.store import S3Store

__all__ = ["Entry", "Objects"]

MB = 1024 * 1024
MULTIPART_BYTES = 16 * MB
MAX_PARTS = 9000
PARTS_AT_ONCE = 4
CHUNK_BYTES = 4 * MB

# A small request that takes longer has met a server that does not answer; one with a file in it may take its time.
PROBE = {"max_retries": 1, "retry_timeout": timedelta(seconds=6)}
RETRIES = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}
CONNECT, SMALL, STALLED, LARGE = (timedelta(seconds=seconds) for seconds in (3, 10, 300, 7200))

ADVICE = {
    "NoSuchBucket": "there is no such bucket: make it, or correct MARTLET_STORE",
    "InvalidAccessKeyId": "the server does not know the access key: check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong: check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session token has expired: renew AWS_SESSION_TOKEN",
    "AccessDenied": "these credentials may not do this: check AWS_ACCESS_KEY_ID and the bucket's policy",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
}
REASONS = {
    "Missing AccessKeyId": "there is no access key: set AWS_ACCESS_KEY_ID",
    "Missing SecretAccessKey": "there is no secret key: set AWS_SECRET_ACCESS_KEY",
    "/latest/api/token": "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (profiles in "
    "~/.aws are not read)",
    "dns error": "the endpoint's name is not known: check AWS_ENDPOINT_URL",
    "Connection refused": "the connection is refused: is the server running, is AWS_ENDPOINT_URL right?",
    "UnknownIssuer": "the endpoint's certificate is of an authority that this machine does not know",
    "invalid peer certificate": "the endpoint's certificate is not valid",
    "timed out": "the server does not answer",
    "TimedOut": "the server does not answer",
    "Timeout": "the server does not answer",
    "Connect": "there is no connection to the server",
}


@dataclass(frozen=True)
class Entry:
    """What a listing tells of an object: its name below the prefix, its bytes, when it was written (server's clock)."""

    name: str
    size: int
    modified: datetime


class Objects:
    """The objects below a prefix of a bucket; every name is relative to it."""

    def __init__(self, bucket: str, prefix: str) -> None:
        """Asks nothing of the server yet.

        Raises:
            MissingPackage: obstore is not installed.
            UserError: the environment names an endpoint that is none.
        """
        self.location = f"s3://{bucket}/{prefix}".rstrip("/")
        try:
            import obstore
            import obstore.store
        except ImportError:
            raise MissingPackage(
                f"the store {self.location} needs the package obstore, which is not installed: `pip install obstore`"
            ) from None
        _check_endpoint(self.location)
        self._obstore: Any = obstore
        self._bucket, self._prefix = bucket, prefix
        with self._errors():
            self._small = self._client(SMALL, RETRIES)
            self._large = self._client(LARGE, RETRIES)

    def _client(self, timeout: timedelta, retries: dict[str, Any]) -> S3Store:
        # Options that are given replace those that obstore would take from the environment.
        options: Any = {"connect_timeout": CONNECT, "read_timeout": STALLED, "timeout": timeout}
        options["allow_http"] = _allows_http()
        if authorities := _authorities(self.location):
            options["root_certificate"] = authorities
        store: S3Store = self._obstore.store.S3Store(
            self._bucket, prefix=self._prefix or None, client_options=options, retry_config=retries
        )
        return store

    # --- reading ---

    def probe(self, name: str) -> bytes | None:
        """As `get`, for the first request to a server: gives up within seconds."""
        with self._errors():
            client = self._client(CONNECT, PROBE)
            try:
                return bytes(self._obstore.get(client, name).bytes())
            except FileNotFoundError as error:
                _raise_if_no_bucket(error)
                return None

    def get(self, name: str) -> bytes | None:
        """The content of a small object, None if it is not there."""
        found = self.get_tagged(name)
        return found[0] if found else None

    def get_tagged(self, name: str) -> tuple[bytes, str] | None:
        """The content of a small object and its ETag."""
        with self._errors():
            try:
                result = self._obstore.get(self._small, name)
            except FileNotFoundError as error:
                _raise_if_no_bucket(error)
                return None
            return bytes(result.bytes()), str(result.meta["e_tag"])

    def tag(self, name: str) -> str | None:
        """The ETag of an object, None if it is not there."""
        with self._errors():
            try:
                return str(self._obstore.head(self._small, name)["e_tag"])
            except FileNotFoundError:
                return None

    def pull(self, name: str, to: Path | None) -> tuple[str, int] | None:
        """Streams an object into a new file, or nowhere, and answers the SHA-256 and the number of its bytes."""
        digest, size = hashlib.sha256(), 0
        with self._errors():
            try:
                stream = self._obstore.get(self._large, name).stream(min_chunk_size=CHUNK_BYTES)
            except FileNotFoundError:
                return None
        descriptor = os.open(to or os.devnull, os.O_WRONLY | (os.O_CREAT | os.O_EXCL if to else 0), 0o600)
        try:
            while True:
                with self._errors():
                    chunk = next(stream, None)
                if chunk is None:
                    return digest.hexdigest(), size
                view = memoryview(chunk)
                write_all(descriptor, view)
                digest.update(view)
                size += len(view)
        finally:
            os.close(descriptor)

    def entries(self, folder: str, after: str = "") -> Iterator[Entry]:
        """The objects below a folder by name, those after the name `after` only; a request for each thousand."""
        with self._errors():
            stream = self._obstore.list(self._small, folder, offset=after or None, chunk_size=1000)
        while True:
            with self._errors():
                batch = next(stream, None)
            if batch is None:
                return
            for entry in batch:
                yield Entry(entry["path"], entry["size"], entry["last_modified"])

    def folders(self, folder: str) -> list[str]:
        """The names of the folders in a folder."""
        with self._errors():
            found = self._obstore.list_with_delimiter(self._small, folder)["common_prefixes"]
        return [name.rstrip("/").rpartition("/")[2] for name in found]

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        """The bytes of those of the objects that are there.

        Names that share their folder are asked for by one listing of it, others by one request each: 256 requests at
        most for blobs, however many there are.
        """
        folders: dict[str, list[str]] = {}
        for name in names:
            folders.setdefault(name.rpartition("/")[0], []).append(name)
        found = in_threads(lambda item: self._sizes(*item), folders.items())
        return {name: size for sizes in found for name, size in sizes.items()}

    def _sizes(self, folder: str, names: list[str]) -> dict[str, int]:
        if len(names) > 1:
            wanted = set(names)
            return {entry.name: entry.size for entry in self.entries(folder) if entry.name in wanted}
        with self._errors():
            try:
                return {names[0]: self._obstore.head(self._small, names[0])["size"]}
            except FileNotFoundError:
                return {}

    # --- writing ---

    def put(self, name: str, data: bytes) -> str:
        """Writes a small object, over one that is there; answers its ETag."""
        with self._errors():
            return str(self._obstore.put(self._small, name, data, use_multipart=False)["e_tag"])

    def create(self, name: str, data: bytes) -> str | None:
        """Writes a small object and answers its ETag; None if there is one already, which stays as it is."""
        with self._errors():
            try:
                return str(self._obstore.put(self._small, name, data, mode="create")["e_tag"])
            except self._obstore.exceptions.AlreadyExistsError:
                return None

    def replace(self, name: str, data: bytes, tag: str) -> str | None:
        """Writes over the version of an object that has the ETag `tag`; None if that is no longer the one there."""
        with self._errors():
            try:
                return str(self._obstore.put(self._small, name, data, mode={"e_tag": tag})["e_tag"])
            except (self._obstore.exceptions.PreconditionError, FileNotFoundError) as error:
                _raise_if_no_bucket(error)
                return None

    def push(self, name: str, path: Path, size: int, *, over: bool = False) -> None:
        """Uploads a file whose name follows from its content.

        Large ones go in parts, several at once; obstore has no condition for these, and replaces what is there.

        Args:
            name: of the object.
            path: the file.
            size: its bytes.
            over: replace an object of the same size too; else it is taken for the same.
        """
        with self._errors():
            if size > MULTIPART_BYTES:
                part = max(MULTIPART_BYTES, size // MAX_PARTS + 1)
                self._obstore.put(self._large, name, path, chunk_size=part, max_concurrency=PARTS_AT_ONCE)
                return
            try:
                self._obstore.put(self._large, name, path, mode="overwrite" if over else "create", use_multipart=False)
            except self._obstore.exceptions.AlreadyExistsError:
                if self._obstore.head(self._small, name)["size"] != size:
                    self._obstore.put(self._large, name, path, use_multipart=False)

    def move(self, name: str, to: str) -> None:
        """Gives an object another name."""
        with self._errors():
            self._obstore.copy(self._small, name, to)
            self._obstore.delete(self._small, [name])

    def delete(self, names: Sequence[str]) -> None:
        """Removes objects; those that are not there are fine."""
        if names:
            with self._errors():
                self._obstore.delete(self._small, list(names))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns obstore's errors into one line."""
        try:
            yield
        except (self._obstore.exceptions.BaseError, ValueError, FileNotFoundError) as error:
            line, is_users = _explained(str(error))
            # From None: the text of the cause may hold parts of what was signed.
            raise (UserError if is_users else StoreError)(f"the store {self.location}: {line}") from None


def _allows_http() -> bool:
    return os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes", "on")


def _authorities(location: str) -> bytes | None:
    """The certificates that AWS_CA_BUNDLE names, which obstore does not read by itself."""
    if not (path := os.environ.get("AWS_CA_BUNDLE")):
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"the store {location}: AWS_CA_BUNDLE={path} cannot be read: {error.strerror}") from error


def _check_endpoint(location: str) -> None:
    """Obstore panics at an endpoint that is no URL."""
    name = "AWS_ENDPOINT_URL_S3" if os.environ.get("AWS_ENDPOINT_URL_S3") else "AWS_ENDPOINT_URL"
    endpoint = urlsplit(os.environ.get(name) or "https://default")
    if endpoint.scheme not in ("http", "https") or not endpoint.hostname:
        raise UserError(f"the store {location}: {name} is no URL: give https://host, or http://host:port")
    if endpoint.username or endpoint.password:
        raise UserError(f"the store {location}: {name} holds credentials: set AWS_ACCESS_KEY_ID instead")
    if endpoint.scheme == "http" and not _allows_http():
        raise UserError(f"the store {location}: {name} is http: set AWS_ALLOW_HTTP=true, or give an https endpoint")


class _NoBucket(ValueError):
    """Stands for a 404 that is about the bucket."""


def _raise_if_no_bucket(error: BaseException) -> None:
    if "<Code>NoSuchBucket</Code>" in str(error):
        raise _NoBucket("<Code>NoSuchBucket</Code>")


def _explained(text: str) -> tuple[str, bool]:
    """An error of obstore in a few words, and whether it is the user's to mend before anything can work."""
    if code := re.search(r"<Code>(\w+)</Code>", text):
        if advice := ADVICE.get(code[1]):
            return f"{code[1]}: {advice}", code[1] == "NoSuchBucket"
        return f"the server answered {code[1]}", False
    for word, reason in REASONS.items():
        if word in text:
            return reason, False
    if status := re.search(r"status code: (\d{3} [A-Z][A-Za-z ]*)", text):
        return f"the server answered {status[1].strip()}", False
    return "the request failed", False
