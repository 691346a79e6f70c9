"""The store in a bucket, with a local store in front of it as cache: `MARTLET_STORE=s3://bucket/prefix`.

    store = open_store("s3://bucket/team")      # AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID … say whose bucket it is
    store.check_out(ref, Path("inputs/model"), reads=["*.json"])   # pulls only those files

Layout of the bucket, as a local store's: `blobs/`, `trees/`, `manifests/`, `actions/`, `refs/`, `runs/`, `leases/`,
`scratch/` (see `remote_work.py`). Written in the order blobs, tree, manifest, action. Blobs and trees are named by
their content and never change; an action is replaced only by whoever saw the one before it when it took the lease.
The cache holds blobs and trees that were read or made here, and the scratch folders; it may be removed at any time
when nothing runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from stages.artifacts.disk import Place, store_errors, write_atomically
from stages.artifacts.hashing import in_threads
from stages.artifacts.interface import Paths, Reference
from stages.artifacts.manifest import ActionRecord, Manifest
from stages.artifacts.naming import digits_of, name_of, the_one, unknown
from stages.artifacts.objects import Objects
from stages.artifacts.reference import ArtifactRef, Kind
from stages.artifacts.remote_lease import LEASE_SECONDS, Held, remote_lease
from stages.artifacts.remote_records import RemoteRecords
from stages.artifacts.remote_work import KeptWork
from stages.artifacts.store import LocalStore
from stages.artifacts.tree import EVERYTHING, File, Tree
from stages.errors import CorruptArtifact, StoreError, UnknownReference

__all__ = ["RemoteStore"]

SEEN_SECONDS = 60.0  # for so long a blob or tree that was seen in the bucket is not asked for again
UPLOADS = 8

logger = logging.getLogger("martlet.store")


class RemoteStore:
    """A store in a bucket. `store.LocalStore` documents the calls; what differs is said here."""

    def __init__(self, objects: Objects, local: LocalStore, home: str, lease_seconds: float = LEASE_SECONDS) -> None:
        """Nothing is asked of the server yet.

        Args:
            objects: the bucket.
            local: the cache.
            home: a name for the cache that no other has.
            lease_seconds: a holder that is silent for so long counts as dead.
        """
        self.objects = objects
        self.local = local
        self.lease_seconds = lease_seconds
        self.records = RemoteRecords(objects)
        self.location = objects.location
        self.place: Place = local.place
        self._home = home
        self._seen: dict[str, float] = {}  # when, by the name of a blob or tree
        self._noted: set[str] = set()
        self._held: dict[str, Held] = {}
        self._replaces: dict[str, str | None] = {}
        self._work: dict[str, KeptWork] = {}

    # --- files in ---

    def put(self, path: Path, kind: Kind, *, move: bool = False) -> ArtifactRef:
        """Takes in files, and uploads those whose content the bucket does not have."""
        ref = self.local.put(path, kind, move=move)
        self._upload(self.local.tree(ref))
        return ref

    def take_in(self, path: Paths, kind: Kind = "files") -> ArtifactRef:
        """As `put`, for files of a user's."""
        ref = self.local.take_in(path, kind)
        self._upload(self.local.tree(ref))
        if name_of(ref) not in self._noted:
            self.records.note_taken_in(name_of(ref), self.local.taken_in_from(ref))
            self._noted.add(name_of(ref))
        return ref

    def peek(self, path: Paths, kind: Kind = "files") -> Tree:
        """Asks nothing of the server."""
        return self.local.peek(path, kind)

    def _upload(self, tree: Tree) -> None:
        """Brings a tree's blobs, then the tree itself, into the bucket. They are whole here."""
        missing = self._missing(tree)
        files = {file.sha256: file for file in tree.files if _blob(file.sha256) in missing}
        began = time.monotonic()
        in_threads(self._push, sorted(files.values(), key=lambda file: -file.size), UPLOADS)
        if _tree(tree.name) in missing:
            self.objects.put(_tree(tree.name), tree.to_bytes())
            self._seen[_tree(tree.name)] = time.monotonic()
        if files:
            size, seconds = sum(file.size for file in files.values()) / 1e6, time.monotonic() - began
            logger.debug("uploaded %d of %d files, %.1f MB, in %.1f s", len(files), len(tree.files), size, seconds)

    def _push(self, file: File) -> None:
        self.objects.push(_blob(file.sha256), self.local.blobs.path(file.sha256), file.size)
        self._seen[_blob(file.sha256)] = time.monotonic()

    def _missing(self, tree: Tree) -> set[str]:
        """The objects of a tree, its blobs and itself, that the bucket does not have with their size."""
        wanted = {_blob(file.sha256): file.size for file in tree.files}
        wanted[_tree(tree.name)] = len(tree.to_bytes())
        earliest = time.monotonic() - SEEN_SECONDS
        unsure = [name for name in wanted if self._seen.get(name, earliest) <= earliest]
        sizes = self.objects.sizes(unsure)
        there = {name for name in unsure if sizes.get(name) == wanted[name]}
        self._seen |= dict.fromkeys(there, time.monotonic())
        return set(unsure) - there

    # --- files out ---

    def tree(self, reference: Reference) -> Tree:
        """The files of an artifact: from the cache, or from the bucket."""
        name = name_of(reference)
        try:
            return self.local.tree(name)
        except (UnknownReference, CorruptArtifact):
            data = self.objects.get(_tree(name))
        if data is None:
            raise UnknownReference(unknown(f"sha256:{name}", self.location))
        try:
            tree = Tree.from_bytes(data)
        except ValueError:
            tree = None
        if tree is None or tree.name != name:
            raise CorruptArtifact(f"the tree of sha256:{name} is damaged; run the stage that makes it again")
        self._write(self.local.root / "trees" / f"{name}.json", data)
        return tree

    def _write(self, path: Path, data: bytes) -> None:
        with store_errors(self.place):
            write_atomically(path, data, self.local.workspace.path(), durable=False)

    def view_digest(self, reference: Reference, reads: Sequence[str]) -> str:
        """The digest of those files of an artifact that match the globs."""
        return self.tree(reference).view_digest(reads)

    def find(self, prefix: str) -> ArtifactRef:
        """The artifact whose digest begins with `prefix`: one request, however many there are."""
        digits = digits_of(prefix)
        found = []
        for entry in self.objects.entries("trees", after=f"trees/{digits}"):
            name = entry.name.removeprefix("trees/").removesuffix(".json")
            if not name.startswith(digits):
                break
            found.append(f"sha256:{name}")
        return self.tree(the_one(found, prefix, self.location)).ref

    def check_out(self, reference: Reference, to: Path, reads: Sequence[str] = EVERYTHING) -> None:
        """Pulls the files that match the globs, where the cache lacks them, and links them."""
        self._out(reference, reads, lambda: self.local.check_out(reference, to, reads))

    def copy_out(self, reference: Reference, to: Path, reads: Sequence[str] = EVERYTHING) -> None:
        """Pulls the files, where the cache lacks them, and puts them into a folder of the user's."""
        self._out(reference, reads, lambda: self.local.copy_out(reference, to, reads))

    def _out(self, reference: Reference, reads: Sequence[str], bring_out: Callable[[], None]) -> None:
        tree = self.tree(reference)
        self._pull(tree, reads)
        try:
            bring_out()
        except CorruptArtifact as error:  # the cache's own copy was damaged, and is in quarantine now
            logger.warning("%s: pulled again", error)
            self._pull(tree, reads)
            bring_out()

    def _pull(self, tree: Tree, reads: Sequence[str]) -> None:
        lacking = [file for file in tree.select(reads).files if self.local.blobs.lacks(file)]
        if not lacking:
            return
        began = time.monotonic()
        with store_errors(self.place):
            self.local.blobs.receive(tree, lacking, self._bring)
        size, seconds = sum({file.sha256: file.size for file in lacking}.values()) / 1e6, time.monotonic() - began
        what = (len(lacking), tree.kind, tree.digest[:19])
        logger.info("pulled %d files of %s %s, %.1f MB, in %.1f s", *what, size, seconds)

    def _bring(self, file: File, to: Path) -> str:
        pulled = self.objects.pull(_blob(file.sha256), to)
        if pulled is None:
            raise CorruptArtifact(
                f"{file.path} is not in the store {self.location} any more (blob {file.sha256[:12]}); "
                "run the stage that makes it again"
            )
        if pulled != (file.sha256, file.size):
            self._quarantine(file)
        return pulled[0]

    def _quarantine(self, file: File) -> None:
        """Puts a damaged blob out of the way, so that its stage runs again and uploads it anew."""
        place = f"quarantine/{file.sha256}-{time.time_ns()}"
        try:
            self.objects.move(_blob(file.sha256), place)
            logger.warning("blob %s is not what it was when it was stored; moved to %s", file.sha256, place)
        except StoreError as error:
            logger.warning("blob %s is not what it was and could not be moved away: %s", file.sha256, error)
        self._seen.pop(_blob(file.sha256), None)

    def is_whole(self, reference: Reference) -> bool:
        """Whether every blob is in the bucket with its size; one that only the cache has whole is uploaded again."""
        try:
            tree = self.tree(reference)
        except (UnknownReference, CorruptArtifact):
            return False
        missing = self._missing(tree)
        if not missing:
            return True
        files = [file for file in tree.files if _blob(file.sha256) in missing]
        with store_errors(self.place):
            if any(self.local.blobs.lacks(file) for file in files) or self.local.blobs.damaged(tree, files):
                return False
        self._upload(tree)
        logger.info("uploaded %d objects of %s again, which the store had lost", len(missing), tree.digest[:19])
        return True

    def rehash(self, file: File) -> Literal["whole", "damaged", "missing"]:
        """Reads a blob of the bucket to its end; keeps nothing of it."""
        pulled = self.objects.pull(_blob(file.sha256), None)
        if pulled is None:
            return "missing"
        return "whole" if pulled == (file.sha256, file.size) else "damaged"

    def trees(self) -> list[str]:
        """The digests of all trees in the bucket."""
        names = (entry.name.removeprefix("trees/").removesuffix(".json") for entry in self.objects.entries("trees"))
        return [f"sha256:{name}" for name in names]

    # --- results ---

    def action(self, key: str) -> ActionRecord | None:
        """The answer to a key, if every blob of its artifact is in the bucket; pulls none."""
        action = self.records.action(key)
        return action if action and self.is_whole(action.artifact) else None

    def recorded(self, key: str) -> ActionRecord | None:
        """The answer to a key as it was recorded."""
        return self.records.action(key)

    def actions_of(self, stage: str) -> Iterator[ActionRecord]:
        """The answers of a stage, newest first."""
        return self.records.actions_of(stage)

    def commit(self, manifest: Manifest) -> ActionRecord:
        """Makes a result count, and answers what counts: if another host has answered the key meanwhile, its answer.

        That can only be where the lease was lost without notice. Both answers are right, and the first may be in use.

        Raises:
            StoreError: the lease on the key was lost, or the server cannot be asked.
        """
        for digest in filter(None, (manifest.artifact.digest, manifest.attachments)):
            self._upload(self.tree(digest))
        held = self._held.get(manifest.key)
        if held is not None:
            held.renew()
            return self.records.write(manifest, self._replaces[manifest.key])
        return self.records.write(manifest, self.records.action_tag(manifest.key))

    def artifacts(self) -> list[ArtifactRef]:
        """Every artifact that a stage made or a user handed in."""
        there = set(self.trees())
        names = set(self.records.artifacts()) | {f"sha256:{name}" for name in self.records.taken_in()}
        return [tree.ref for tree in in_threads(self.tree, sorted(names & there))]

    def manifests(self, reference: Reference) -> list[Manifest]:
        """Every manifest of an artifact, newest first."""
        return self.records.manifests(name_of(reference))

    def taken_in_from(self, reference: Reference) -> list[str]:
        """The paths that it was taken in from, on whichever host that was."""
        return self.records.taken_in_from(name_of(reference))

    # --- work ---

    @contextmanager
    def lease(
        self,
        key: str,
        on_wait: Callable[[str], None] | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> Iterator[None]:
        """Holds a key on this host and among all hosts: see `remote_lease.py`. Ends once kept work is uploaded."""
        with self.local.lease(key, on_wait, stop_requested):
            held = Held(self.objects, key, self._home, self.lease_seconds)
            with remote_lease(held, on_wait, stop_requested):
                self._held[key] = held
                self._replaces[key] = self.records.action_tag(key)
                try:
                    yield
                finally:
                    if work := self._work.pop(key, None):
                        work.end()
                    del self._held[key], self._replaces[key]

    def scratch_path(self, key: str) -> Path:
        """Where the folder of this machine that survives retries of a key is, or would be."""
        return self.local.scratch_path(key)

    def scratch(self, key: str) -> Path:
        """That folder, brought to the state in which another host has left it, if one has. Hold the key's lease."""
        folder = self.local.scratch(key)
        with store_errors(self.place):
            self._work[key] = KeptWork(self.objects, key, folder, self.local.workspace)
            self._work[key].fetch()
        return folder

    def keep_work(self, key: str, checkpoints: Sequence[Path] | None = None, logs: Path | None = None) -> None:
        """Uploads what a try on another host needs to go on, in the background: see `remote_work.py`.

        Args:
            key: its lease is held, and its scratch folder was asked for.
            checkpoints: folders that are complete; all of the scratch folder by default.
            logs: a folder that is still written to.
        """
        with store_errors(self.place):
            if checkpoints is None:
                self._work[key].keep_all()
            else:
                self._work[key].keep(checkpoints, logs)

    def has_kept_work(self, key: str) -> bool:
        """Whether a try on another host would have something to go on from."""
        return KeptWork(self.objects, key, self.scratch_path(key), self.local.workspace).is_there()

    def discard_scratch(self, key: str) -> None:
        """Removes the scratch folder, here and in the bucket."""
        if work := self._work.get(key):
            work.discard()
        self.local.discard_scratch(key)

    @contextmanager
    def work_folder(self) -> Iterator[Path]:
        """A new empty folder on the cache's file system."""
        with self.local.work_folder() as folder:
            yield folder

    def save_run(self, record: Mapping[str, Any]) -> None:
        """Keeps the record of a run under its `id`."""
        self.records.save_run(record)

    def run(self, name: str) -> dict[str, Any]:
        """The record of a run, by its id or the beginning of it."""
        return self.records.run(name)

    def runs(self) -> list[dict[str, Any]]:
        """The records of all runs, newest first."""
        return self.records.runs()


def _blob(sha256: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256[2:]}"


def _tree(name: str) -> str:
    return f"trees/{name}.json"
