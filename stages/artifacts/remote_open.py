"""Opens a store in a bucket: `open_remote("s3://bucket/prefix")`; `store.open_store` calls it."""

from __future__ import annotations

import json
import os
from contextlib import suppress

from stages.artifacts.address import parse_address
from stages.artifacts.disk import store_errors
from stages.artifacts.objects import Objects
from stages.artifacts.remote_store import RemoteStore
from stages.artifacts.store import FORMAT, MARKER, LocalStore
from stages.errors import UserError

__all__ = ["open_remote"]

HOME = "home"  # a file of the cache: a name for it that no other cache has


def open_remote(place: str) -> RemoteStore:
    """The store at `s3://bucket/prefix`; made if there is none.

    Raises:
        UserError: the address is none, there is no such bucket, or other things are at its prefix.
        StoreError: the server does not answer or refuses.
        MissingPackage: obstore is not installed.
    """
    address = parse_address(place)
    objects = Objects(address.bucket, address.prefix)
    _check_marker(objects)
    local = LocalStore(address.cache(), "the cache", "set MARTLET_CACHE")
    return RemoteStore(objects, local, _home(local))


def _check_marker(objects: Objects) -> None:
    """Makes the store if its prefix is empty."""
    data = objects.probe(MARKER)
    if data is None:
        first = next(objects.entries(""), None)
        if first is not None and first.name != MARKER:
            raise UserError(
                f"{objects.location} is not a store but holds other things, such as {first.name}; "
                "set MARTLET_STORE to an empty prefix"
            )
        objects.create(MARKER, json.dumps({"format": FORMAT}).encode())
        return
    try:
        made_with = json.loads(data)["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{objects.location}/{MARKER} is damaged: it should hold {json.dumps({'format': FORMAT})}"
        ) from error
    if made_with != FORMAT:
        raise UserError(f"the store {objects.location} has format {made_with}; this Martlet reads format {FORMAT}")


def _home(local: LocalStore) -> str:
    """The name of a cache, made with it."""
    path = local.root / HOME
    with store_errors(local.place):
        if not path.exists():
            temporary = local.workspace.file()
            temporary.write_text(os.urandom(16).hex())
            with suppress(FileExistsError):  # of several processes that start together one is the first
                os.link(temporary, path)
            temporary.unlink()
        return path.read_text()
