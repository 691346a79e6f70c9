"""Environments are made whole from their lock, or count as not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stages import environments as module
from stages.environments import create, environments, interpreter
from stages.errors import ArgumentsError, MissingPackage, StageFailed

LOCK = "# nothing to install\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one environment of no package, and the real project's uv on the path."""
    uv = module.PROJECT / ".venvs" / "uv" / "bin"
    for name in ("tiny", "dev", "core"):
        folder = tmp_path / "containers" / name
        folder.mkdir(parents=True)
        (folder / "requirements.lock").write_text(LOCK)
    monkeypatch.setattr(module, "PROJECT", tmp_path)
    monkeypatch.setenv("PATH", str(uv), prepend=":")
    monkeypatch.delenv("MARTLET_ENVIRONMENTS", raising=False)
    return tmp_path


def state(name: str = "tiny") -> str:
    return next(environment.state for environment in environments() if environment.name == name)


def test_those_with_a_lock_are_listed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [(e.name, e.state, e.path) for e in environments()] == [
        ("core", "missing", project / ".venvs" / "core"),
        ("tiny", "missing", project / ".venvs" / "tiny"),
    ]
    monkeypatch.setenv("MARTLET_ENVIRONMENTS", str(project / "elsewhere"))
    assert environments()[1].path == project / "elsewhere" / "tiny"


def test_the_projects_own_are_the_ones_that_stages_use() -> None:
    assert {"core", "evaluate"} <= {environment.name for environment in environments()}
    assert interpreter("core") == Path(sys.executable)


def test_it_is_made_once_and_anew_when_cut_off_or_when_its_lock_changes(project: Path) -> None:
    with pytest.raises(MissingPackage, match=r"environment tiny is missing .*: run `martlet env create tiny`"):
        interpreter("tiny")
    path = create("tiny")
    assert state() == "ready"
    python = interpreter("tiny")
    prefix = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    assert prefix.stdout.strip() == str(path)

    (path / "mine").touch()
    create("tiny")
    assert (path / "mine").exists()  # it was ready, and left alone

    (path / ".complete").unlink()  # as a kill during the installation leaves it
    assert state() == "incomplete"
    create("tiny")
    assert not (path / "mine").exists()
    assert state() == "ready"

    (project / "containers" / "tiny" / "requirements.lock").write_text(LOCK + "# changed\n")
    assert state() == "outdated"
    with pytest.raises(MissingPackage, match="environment tiny is outdated"):
        interpreter("tiny")
    create("tiny")
    assert state() == "ready"


def test_a_folder_that_is_none_is_not_removed(project: Path) -> None:
    folder = project / ".venvs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ArgumentsError, match="is no environment: remove it"):
        create("tiny")
    assert (folder / "thesis.txt").exists()


def test_an_unknown_name_gets_the_choices(project: Path) -> None:
    with pytest.raises(ArgumentsError, match=r"unknown environment 'tny'. Choose from: core, tiny"):
        create("tny")


def test_without_uv_it_says_how_to_get_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(project))
    with pytest.raises(MissingPackage, match="pip install uv"):
        create("tiny")


def test_a_package_that_does_not_exist_leaves_nothing_that_counts(project: Path) -> None:
    lock = project / "containers" / "tiny" / "requirements.lock"
    lock.write_text(f"nothing @ file://{project}/nothing-1.0-py3-none-any.whl\n")
    with pytest.raises(StageFailed, match="environment tiny could not be made: "):
        create("tiny")
    assert state() == "incomplete"
