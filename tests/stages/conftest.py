"""Tiny real stages, and stores to run them in."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from stages.artifacts.store import LocalStore
from tests.stages.vision import write_tiny_idefics3, write_tiny_qwen2_vl

TINY = Path(__file__).with_name("tiny.py")


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module beside this file; its path is `tiny.__file__`."""
    spec = importlib.util.spec_from_file_location("tiny_stages", TINY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_stages"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """An empty store."""
    return LocalStore(tmp_path / "artifacts")


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """What the tiny stage repeats."""
    path = tmp_path / "text.txt"
    path.write_text("swift\n")
    return path


@pytest.fixture(scope="session")
def tiny_qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that sees, once a session; read it, do not change it."""
    return write_tiny_qwen2_vl(tmp_path_factory.mktemp("models") / "tiny-qwen2-vl")


@pytest.fixture(scope="session")
def tiny_idefics3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, whose template reads nothing but parts, and which cuts pictures into pieces."""
    return write_tiny_idefics3(tmp_path_factory.mktemp("models") / "tiny-idefics3")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two whole trainings, to be compared byte by byte, are left out of `make check`."""
    for item in items:
        if any(words in item.name for words in ("cut_off", "test_resume", "told_to_stop")):
            item.add_marker(pytest.mark.slow)
