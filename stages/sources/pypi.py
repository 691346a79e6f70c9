"""Fetches a released file of a Python package and takes single files out of it, for models and data kept on PyPI.

`take_members("llamafactory==0.9.5", Path("scratch"), Path("out"), choose=lambda names: ["data/identity.json"])`
"""

from __future__ import annotations

import logging
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from stages.errors import ModelError, StageFailed, UserError

if TYPE_CHECKING:
    from unearth import Link, PackageFinder

__all__ = ["Archive", "take_members"]

PYPI = "https://pypi.org/simple/"
ARCHIVES = (".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
Progress = Callable[[float, float, str], None]


class Archive:
    """A wheel or a source distribution; its files are named without the leading `NAME-VERSION/`."""

    def __init__(self, path: Path, *, error: type[UserError] = ModelError) -> None:
        """Reads the table of contents.

        Raises:
            error: the file is not an archive, or is cut off.
        """
        self.path = path
        self._error = error
        self._names = self._list()

    @property
    def names(self) -> list[str]:
        """Every file inside, sorted."""
        return sorted(self._names)

    def extract(self, name: str, target: Path) -> None:
        """Writes one file of the archive to `target`, whatever its name inside says."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._reporting(), self._open(self._names[name]) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)

    def _list(self) -> dict[str, str]:
        with self._reporting():
            if self.path.suffix in (".whl", ".zip"):
                with zipfile.ZipFile(self.path) as archive:
                    return {entry.filename: entry.filename for entry in archive.infolist() if not entry.is_dir()}
            with tarfile.open(self.path) as tar:
                return {member.name.partition("/")[2]: member.name for member in tar if member.isfile()}

    @contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        if self.path.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(self.path) as archive, archive.open(name) as file:
                yield file
            return
        with tarfile.open(self.path) as tar:
            member = tar.extractfile(name)
            assert member is not None, name
            yield member

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            raise self._error(f"{self.path.name} is not a whole archive: {error}") from error


def take_members(
    requirement: str,
    folder: Path,
    out: Path,
    *,
    choose: Callable[[Sequence[str]], Sequence[str]],
    prefer: Literal["wheel", "source"] = "wheel",
    error: type[UserError] = ModelError,
    progress: Progress | None = None,
) -> list[Path]:
    """Fetches the files of one release in turn until `choose` finds what it wants among the names inside.

    Args:
        requirement: NAME==VERSION, exact.
        folder: where archives are kept between tries.
        out: the chosen files are written here, under their last name.
        choose: from the names inside of an archive, those to take; none means: look into the next one.
        prefer: which of the release's files is looked into first.
        error: what a wrong name is raised as.
        progress: told the bytes that have arrived.

    Raises:
        error: there is no such release, or none of its files holds what is wanted.
        StageFailed: the index cannot be reached, or what arrived is not what it promised.
    """
    finder = _finder()
    looked_into = []
    for link in _links(finder, requirement, prefer, error):
        archive = Archive(_fetch(finder, link, folder, progress), error=error)
        if chosen := choose(archive.names):
            for name in chosen:
                archive.extract(name, out / Path(name).name)
            return [out / Path(name).name for name in chosen]
        looked_into.append(link.filename)
    raise error(f"{requirement} holds nothing that fits; looked into {', '.join(looked_into)}")


def index_urls() -> list[str]:
    """The package indexes that pip and uv are told to use, in their order."""
    own = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL") or os.environ.get("PIP_INDEX_URL")
    extra = os.environ.get("UV_EXTRA_INDEX_URL") or os.environ.get("PIP_EXTRA_INDEX_URL") or ""
    return [own or PYPI, *extra.split()]


def _finder() -> PackageFinder:
    from unearth import PackageFinder

    # It warns of every index that lacks the package; whether that matters is decided and said here.
    logging.getLogger("unearth").setLevel(logging.ERROR)
    return PackageFinder(index_urls=index_urls(), ignore_compatibility=True)


def _links(finder: PackageFinder, requirement: str, prefer: str, error: type[UserError]) -> list[Link]:
    """The release's files that suit every machine, the preferred kind first."""
    import httpx2

    try:
        found = [match.link for match in finder.find_matches(requirement, allow_yanked=True)]
    except httpx2.HTTPError as failure:
        reason = str(failure) or type(failure).__name__
        raise StageFailed(f"the package index {index_urls()[0]} cannot be reached: {reason}") from failure
    links = [
        link
        for link in found
        if link.filename.endswith(ARCHIVES) and (not link.is_wheel or link.filename.endswith("-none-any.whl"))
    ]
    if not links:
        raise _no_release(finder, requirement, error)
    links.sort(key=lambda link: (link.is_wheel != (prefer == "wheel"), link.filename))
    return links


def _no_release(finder: PackageFinder, requirement: str, error: type[UserError]) -> Exception:
    name = requirement.partition("==")[0]
    index = index_urls()[0]
    if versions := list(dict.fromkeys(str(package.version) for package in finder.find_all_packages(name))):
        shown = ", ".join(versions[:8])
        return error(f"{requirement} has no file that suits every machine at {index}. Released: {shown}")
    status = finder.session.get(f"{index.rstrip('/')}/{name}/").status_code
    if status >= 500:
        return StageFailed(f"the package index {index} answers {status}; try again later")
    return error(f"{index} has no package {name!r}")


def _fetch(finder: PackageFinder, link: Link, folder: Path, progress: Progress | None) -> Path:
    import httpx2
    from unearth.errors import HashMismatchError, UnpackError

    sha256 = (link.hashes or {}).get("sha256")
    if not sha256:
        raise StageFailed(f"the package index gives no sha256 for {link.filename}: it cannot be verified")

    def report(_: Any, completed: int, total: int | None) -> None:
        if progress:
            progress(completed, total or completed, f"{link.filename}: {completed / 1e6:.0f} MB")

    try:
        return Path(finder.download(link, folder, hashes={"sha256": [sha256]}, download_reporter=report))
    except HashMismatchError as failure:
        raise StageFailed(f"{link.filename} arrived with another sha256 than the index gives: {sha256}") from failure
    except (UnpackError, httpx2.HTTPError) as failure:
        raise StageFailed(f"{link.filename} could not be fetched: {failure or type(failure).__name__}") from failure
