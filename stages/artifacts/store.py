"""The store of artifacts: content-addressed, shared by every run on a machine.

    store = open_store()                       # MARTLET_STORE, else ~/.cache/martlet
    ref = store.put(Path("model"), "model")
    store.check_out(ref, Path("inputs/model"), reads=["*.json"])

Layout: `blobs/ab/cdef…` (bytes by SHA-256, read-only), `trees/` (files by path), `manifests/<artifact>/<key>.json`,
`actions/<key>.json` (the answer to a key), `stats/` (when was a blob last known to be whole), `sources/` (what is known
of users' own files), `refs/`, `runs/`, `leases/`, `scratch/<key>/`, `quarantine/`, `tmp/`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from stages.artifacts.blobs import Blobs
from stages.artifacts.checkout import check_out, copy_out
from stages.artifacts.disk import Place, remove_folder, store_errors, write_atomically
from stages.artifacts.hashing import hash_file, on_all_cores
from stages.artifacts.interface import Paths, Reference, Store
from stages.artifacts.lease import lease
from stages.artifacts.local_files import NOT_CONTENT, Found, Known, scan
from stages.artifacts.manifest import ActionRecord, Manifest
from stages.artifacts.naming import digits_of, name_of, the_one, unknown
from stages.artifacts.records import Records
from stages.artifacts.reference import ArtifactRef, Kind
from stages.artifacts.tree import EVERYTHING, File, Tree
from stages.artifacts.workspace import Workspace
from stages.errors import CorruptArtifact, UnknownReference, UserError

__all__ = ["LocalStore", "Store", "open_store"]

logger = logging.getLogger("martlet.store")

MARKER = "martlet-store.json"
FORMAT = 1


def open_store(location: str | Path | None = None) -> Store:
    """The store at a path or `s3://bucket/prefix`, at `MARTLET_STORE`, or in the user's cache folder; made if need be.

    Raises:
        UserError: the place is a file, a folder of something else, of a newer format, or of an unknown kind.
        StoreError: it cannot be made or reached.
    """
    place = str(location or os.environ.get("MARTLET_STORE") or _default_location())
    if "://" in place:
        from stages.artifacts.remote_open import open_remote

        return open_remote(place)
    return LocalStore(Path(place))


def _default_location() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "martlet"


class LocalStore:
    """A store in a folder of this machine, or of a file system that it shares with others."""

    def __init__(self, root: Path, name: str = "the store", advice: str = "set MARTLET_STORE") -> None:
        """Opens the store at `root`, makes it if need be, and sweeps what dead processes left.

        Args:
            root: its folder.
            name: what errors call it.
            advice: how they say to choose another folder.
        """
        self.root = root.expanduser().absolute()
        self.place = Place(self.root, name, advice)
        self.location = str(self.root)
        self.workspace = Workspace(self.root / "tmp")
        self.blobs = Blobs(self.root, self.workspace)
        self.records = Records(self.root, self.workspace)
        self._open()

    def _open(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise UserError(f"{self.place.name} {self.root} is a file; {self.place.advice} to a folder")
        marker = self.root / MARKER
        with store_errors(self.place):
            if not marker.exists():
                # Another process may be making it: the marker is there before anything else is.
                if self.root.exists() and not _only_ours(self.root) and not marker.exists():
                    raise UserError(
                        f"{self.root} is not a store but a folder with other files; {self.place.advice} to an empty one"
                    )
                (self.root / "tmp").mkdir(parents=True, exist_ok=True)
                write_atomically(marker, json.dumps({"format": FORMAT}).encode(), self.workspace.path())
            _check_format(marker)
            self.workspace.sweep()

    # --- files in ---

    def put(self, path: Path, kind: Kind, *, move: bool = False) -> ArtifactRef:
        """Takes in a folder, or a file as a tree of one, and returns the reference to it.

        Args:
            path: what to take in; symbolic links are followed.
            kind: what it is.
            move: the files are the store's to keep: they are hashed and renamed, not copied.

        Raises:
            UserError: there is no file, or something that is no file.
            StoreError: no space, no permission.
        """
        with store_errors(self.place):
            return self._store(kind, self.blobs.add(scan(path), move=move))

    def take_in(self, path: Paths, kind: Kind = "files") -> ArtifactRef:
        """Takes in what a user hands in; files that were read before and have not changed since are not read again.

        Several paths become one tree, `0/…`, `1/…`. What version control and caches keep in a folder is left out.

        Raises:
            UserError: as `put`.
            StoreError: as `put`.
        """
        with store_errors(self.place):
            found = scan(path, skip=NOT_CONTENT)
            known = Known(path, self.root / "sources")
            hashes = [known.sha256(file) for file in found]
            if None not in hashes:
                tree = _tree(kind, found, [str(sha256) for sha256 in hashes])
                if self._has(tree) and not self.blobs.damaged(tree):
                    return tree.ref
            files = self.blobs.add(found, move=False)
            ref = self._store(kind, files)
            self._note_source(known, found, [file.sha256 for file in files], ref)
            return ref

    def peek(self, path: Paths, kind: Kind = "files") -> Tree:
        """The tree that `take_in` would make, without copying anything; only files never seen before are read.

        Raises:
            UserError: as `put`.
        """
        found = scan(path, skip=NOT_CONTENT)
        known = Known(path, self.root / "sources")
        hashes = {file.name: known.sha256(file) for file in found}
        unknown = sorted((file for file in found if hashes[file.name] is None), key=lambda file: -file.size)
        for file, sha256 in zip(unknown, on_all_cores(lambda file: hash_file(file.path), unknown), strict=True):
            hashes[file.name] = sha256
        ordered = [str(hashes[file.name]) for file in found]
        if unknown:
            self._note_source_if_possible(known, found, ordered)
        return _tree(kind, found, ordered)

    def _store(self, kind: Kind, files: list[File]) -> ArtifactRef:
        tree = Tree.of(kind, files)
        write_atomically(self._tree_path(tree.name), tree.to_bytes(), self.workspace.path())
        self.blobs.remember(tree)
        return tree.ref

    def _note_source_if_possible(self, known: Known, found: list[Found], hashes: list[str]) -> None:
        try:
            self._note_source(known, found, hashes, None)
        except OSError as error:
            logger.debug("what was read of %s is not kept: %s", known.places, error)

    def _note_source(self, known: Known, found: list[Found], hashes: list[str], ref: ArtifactRef | None) -> None:
        scratch = self.workspace.path()
        record = json.dumps(known.to_json(found, hashes)).encode()
        write_atomically(known.record, record, scratch, durable=False)
        if ref is not None:
            place = self.root / "refs" / "taken-in" / f"{name_of(ref)}.json"
            write_atomically(place, json.dumps({"paths": known.places}).encode(), scratch, durable=False)

    # --- files out ---

    def tree(self, reference: Reference) -> Tree:
        """The files of an artifact.

        Raises:
            UnknownReference: the store has no such artifact.
            CorruptArtifact: the tree's own file is not what it was.
        """
        name = name_of(reference)
        try:
            data = self._tree_path(name).read_bytes()
        except FileNotFoundError:
            raise UnknownReference(unknown(f"sha256:{name}", self.location)) from None
        try:
            tree = Tree.from_bytes(data)
        except ValueError as error:
            raise CorruptArtifact(
                f"the tree of sha256:{name} is damaged ({error}); run the stage that makes it again"
            ) from error
        if tree.name != name:
            raise CorruptArtifact(f"the tree of sha256:{name} is damaged; run the stage that makes it again")
        return tree

    def view_digest(self, reference: Reference, reads: Sequence[str]) -> str:
        """The digest of those files of an artifact that match the globs: what enters a key."""
        return self.tree(reference).view_digest(reads)

    def find(self, prefix: str) -> ArtifactRef:
        """The artifact whose digest begins with `prefix`: `sha256:` (may be left out) and 8 digits or more.

        Raises:
            UnknownReference: no artifact, or several, begin so.
        """
        digits = digits_of(prefix)
        names = [name for name in self.trees() if name.startswith(f"sha256:{digits}")]
        return self.tree(the_one(names, prefix, self.location)).ref

    def check_out(self, reference: Reference, to: Path, reads: Sequence[str] = EVERYTHING) -> None:
        """Puts the files that match the globs into the new folder `to`, as read-only hard links.

        Raises:
            CorruptArtifact: a file is missing or is not what it was.
        """
        tree = self._whole(reference, reads)
        with store_errors(self.place):
            check_out(self.blobs.path, tree, to)

    def copy_out(self, reference: Reference, to: Path, reads: Sequence[str] = EVERYTHING) -> None:
        """Puts the files into a folder of the user's, over files of the same name.

        Small ones are the user's to edit; large ones share the store's blocks where the file system can clone them,
        else they are read-only hard links, and copies only on another file system.

        Raises:
            CorruptArtifact: a file is missing or is not what it was.
        """
        tree = self._whole(reference, reads)
        with store_errors(Place(to, "the folder", "copy")):
            copy_out(self.blobs.path, tree, to)

    def is_whole(self, reference: Reference) -> bool:
        """Whether the artifact is in the store, and each of its blobs what it was."""
        try:
            tree = self.tree(reference)
        except (UnknownReference, CorruptArtifact):
            return False
        with store_errors(self.place):
            return not self.blobs.damaged(tree)

    def rehash(self, file: File) -> Literal["whole", "damaged", "missing"]:
        """Reads a blob again, whatever is known of it."""
        with store_errors(self.place):
            return self.blobs.rehash(file)

    def _whole(self, reference: Reference, reads: Sequence[str]) -> Tree:
        tree = self.tree(reference)
        wanted = tree.select(reads)
        with store_errors(self.place):
            bad = self.blobs.damaged(tree, wanted.files)
        if bad:
            names = ", ".join(file.path for file in bad[:3]) + (" …" if len(bad) > 3 else "")
            raise CorruptArtifact(
                f"{tree.kind} {tree.digest[:19]} is damaged ({names}); run the stage that makes it again"
            )
        return wanted

    def _has(self, tree: Tree) -> bool:
        return self._tree_path(tree.name).exists()

    def _tree_path(self, name: str) -> Path:
        return self.root / "trees" / f"{name}.json"

    def trees(self) -> list[str]:
        """The digests of all trees: of artifacts, and of what is kept beside them."""
        folder = self.root / "trees"
        return sorted(f"sha256:{path.stem}" for path in folder.iterdir()) if folder.exists() else []

    # --- results ---

    def action(self, key: str) -> ActionRecord | None:
        """The answer to a key, if there is one and every blob of its artifact is what it was."""
        action = self.records.action(key)
        return action if action and self.is_whole(action.artifact) else None

    def recorded(self, key: str) -> ActionRecord | None:
        """The answer to a key as it was recorded, whether or not its artifact is still whole."""
        return self.records.action(key)

    def actions_of(self, stage: str) -> Iterator[ActionRecord]:
        """The answers of a stage, newest first, whether or not they are still whole."""
        return self.records.actions_of(stage)

    def commit(self, manifest: Manifest) -> ActionRecord:
        """Makes a result count. Its blobs and tree are there already; the manifest follows, the action is last.

        Raises:
            StoreError: no space, no permission.
        """
        with store_errors(self.place):
            for digest in filter(None, (manifest.artifact.digest, manifest.attachments)):
                self.blobs.sync(self.tree(digest))
            return self.records.write(manifest)

    def artifacts(self) -> list[ArtifactRef]:
        """Every artifact that a stage made or a user handed in, without trees that are only attachments."""
        names = set(self.records.artifacts()) | {f"sha256:{name}" for name in self.records.taken_in()}
        return [self.tree(name).ref for name in sorted(names) if self._tree_path(name_of(name)).exists()]

    def manifests(self, reference: Reference) -> list[Manifest]:
        """Every manifest of an artifact, newest first; none if a user handed it in."""
        return self.records.manifests(f"sha256:{name_of(reference)}")

    def taken_in_from(self, reference: Reference) -> list[str]:
        """The paths that it was taken in from, if a user handed it in."""
        return self.records.taken_in_from(name_of(reference))

    # --- work ---

    @contextmanager
    def lease(
        self,
        key: str,
        on_wait: Callable[[str], None] | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> Iterator[None]:
        """Holds a key while its result is computed: see `lease.lease`."""
        path = self.root / "leases" / key
        with ExitStack() as stack:
            with store_errors(self.place):
                path.parent.mkdir(exist_ok=True)
                stack.enter_context(lease(path, on_wait, stop_requested))
            yield

    def scratch_path(self, key: str) -> Path:
        """Where the folder that survives retries of a key is, or would be."""
        return self.root / "scratch" / key

    def scratch(self, key: str) -> Path:
        """That folder, made if it is not there. Hold the key's lease to use it."""
        folder = self.scratch_path(key)
        with store_errors(self.place):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def keep_work(self, key: str, checkpoints: Sequence[Path] | None = None, logs: Path | None = None) -> None:
        """Nothing: what is in the scratch folder is where the next try looks for it."""

    def has_kept_work(self, key: str) -> bool:
        """False: there is no work but what is in the scratch folder."""
        return False

    def discard_scratch(self, key: str) -> None:
        """Removes it."""
        with store_errors(self.place):
            remove_folder(self.scratch_path(key))

    @contextmanager
    def work_folder(self) -> Iterator[Path]:
        """A new empty folder on the store's file system, removed afterwards, or when this process is gone."""
        with ExitStack() as stack:
            with store_errors(self.place):
                folder = stack.enter_context(self.workspace.folder())
            yield folder

    def save_run(self, record: dict[str, Any]) -> None:
        """Keeps the record of a run under its `id`."""
        with store_errors(self.place):
            self.records.save_run(record)

    def run(self, name: str) -> dict[str, Any]:
        """The record of a run, by its id or the beginning of it.

        Raises:
            UnknownReference: no run, or several, begin so.
        """
        return self.records.run(name)

    def runs(self) -> list[dict[str, Any]]:
        """The records of all runs, newest first."""
        return self.records.runs()


def _check_format(marker: Path) -> None:
    try:
        made_with = json.loads(marker.read_bytes())["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{marker} is damaged: it should hold {json.dumps({'format': FORMAT})}") from error
    if made_with != FORMAT:
        raise UserError(f"the store {marker.parent} has format {made_with}; this Martlet reads format {FORMAT}")


def _tree(kind: Kind, found: list[Found], hashes: list[str]) -> Tree:
    return Tree.of(kind, (File(file.name, file.size, sha256) for file, sha256 in zip(found, hashes, strict=True)))


def _only_ours(root: Path) -> bool:
    """Whether a folder is empty, or holds only what a store that was being made at this moment holds."""
    return {path.name for path in root.iterdir()} <= {"tmp", MARKER}
