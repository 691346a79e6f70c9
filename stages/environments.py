"""Environments beside the running one, from the locks in containers/: `interpreter("evaluate")`, `create("evaluate")`.

Packages that cannot be installed together stand in one environment each. They are folders `NAME` in `.venvs/` beside
the project, or where MARTLET_ENVIRONMENTS says. `martlet env create NAME` makes one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.errors import ArgumentsError, MissingPackage, StageFailed

__all__ = ["Environment", "create", "environments", "interpreter"]

PROJECT = Path(__file__).resolve().parents[1]
# Core and the tools that check it; `make environment` installs it as core.
NO_ENVIRONMENT_OF_ITS_OWN = "dev"
RUNNING = "core"

State = Literal["ready", "outdated", "incomplete", "missing"]
logger = logging.getLogger("martlet.environments")


@dataclass(frozen=True)
class Environment:
    """One set of packages.

    Attributes:
        name: of its folder in containers/.
        path: where it is, or would be made.
        lock: the file that lists its packages.
    """

    name: str
    path: Path
    lock: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / "bin" / "python"

    @property
    def marker(self) -> Path:
        """Written last: which lock was installed. `make environment` leaves it empty."""
        return self.path / ".complete"

    @property
    def state(self) -> State:
        """Whether it can be used; `outdated` if its lock has changed since, `incomplete` if making it was cut off."""
        if not self.path.exists():
            return "missing"
        if not self.marker.exists() or not self.python.exists():
            return "incomplete"
        return "ready" if self.marker.read_text().strip() in ("", self.digest) else "outdated"

    @property
    def digest(self) -> str:
        """Of the lock."""
        return hashlib.sha256(self.lock.read_bytes()).hexdigest()


def environments() -> list[Environment]:
    """Those that have a lock, by name."""
    locks = sorted((PROJECT / "containers").glob("*/requirements.lock"))
    names = [lock.parent.name for lock in locks]
    return [
        Environment(name, _folder() / name, lock)
        for name, lock in zip(names, locks, strict=True)
        if name != NO_ENVIRONMENT_OF_ITS_OWN
    ]


def interpreter(name: str) -> Path:
    """The Python of an environment that can be used.

    Raises:
        MissingPackage: it was not made, or from another lock than today's.
    """
    environment = _find(name)
    if name == RUNNING:
        return Path(sys.executable)
    if environment.state != "ready":
        in_an_image = (PROJECT / ".content").exists()
        cure = f"take the image martlet-{name}" if in_an_image else f"run `martlet env create {name}`"
        raise MissingPackage(f"environment {name} is {environment.state} ({environment.path}): {cure}")
    return environment.python


def create(name: str) -> Path:
    """Makes an environment from its lock, bytecode compiled; one that is ready is left as it is.

    A folder without its marker is what a run that was cut off has left: it is made anew.

    Returns:
        Its folder.

    Raises:
        ArgumentsError: no such environment, or a folder in its place that is none.
        MissingPackage: uv is not here.
        StageFailed: a package could not be installed.
    """
    environment = _find(name)
    uv = _uv()
    environment.path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(environment):
        if environment.state == "ready":
            return environment.path
        _refuse_foreign(environment.path)
        if environment.path.resolve() == Path(sys.prefix).resolve():
            raise ArgumentsError(f"environment {name} is the one that runs this: renew it with `make environment`")
        _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment.path)], name)
        _run([uv, "pip", "install", "--python", str(environment.python), *_install_options(), "-r",
              str(environment.lock)], name)  # fmt: skip
        environment.marker.write_text(environment.digest + "\n")
    return environment.path


def _folder() -> Path:
    given = os.environ.get("MARTLET_ENVIRONMENTS")
    return Path(given).expanduser().absolute() if given else PROJECT / ".venvs"


def _find(name: str) -> Environment:
    known = {environment.name: environment for environment in environments()}
    if name not in known:
        raise ArgumentsError(f"unknown environment {name!r}. Choose from: {', '.join(known)}")
    return known[name]


def _uv() -> str:
    own = PROJECT / ".venvs" / "uv" / "bin" / "uv"
    found = str(own) if own.exists() else shutil.which("uv")
    if found is None:
        raise MissingPackage("uv is not here: run `pip install uv`, or `make environment` in the project")
    return found


def _install_options() -> list[str]:
    """The folders of wheels that pip is set up with; uv does not read pip's settings."""
    links = os.environ.get("PIP_FIND_LINKS", "").split()
    return ["--compile-bytecode", *(word for link in links for word in ("--find-links", link))]


def _refuse_foreign(path: Path) -> None:
    if path.exists() and not (path / "pyvenv.cfg").exists() and any(path.iterdir()):
        raise ArgumentsError(f"{path} is no environment: remove it, or set MARTLET_ENVIRONMENTS to another folder")


def _run(command: list[str], name: str) -> None:
    """Runs uv, whose progress goes to the terminal and whose last words become the error."""
    logger.debug("%s", " ".join(command))
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stderr.write(line)
            lines.append(line.strip())
    if process.returncode:
        reason = " ".join(line for line in lines[-6:] if line)
        raise StageFailed(f"environment {name} could not be made: {reason or f'uv ended with {process.returncode}'}")


@contextmanager
def _alone(environment: Environment) -> Iterator[None]:
    """One process at a time makes an environment; the lock is free once its holder is dead."""
    import fcntl

    with environment.path.with_name(f".{environment.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
