"""A lab for each test, and rows that all of them train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stages.training.lab import Lab
from tests.stages.training.tuners.methods import write_tokens


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens")


@pytest.fixture
def lab(tmp_path: Path, tiny_model: Path, tokens: Path) -> Lab:
    return Lab(tmp_path, tiny_model, tokens)
