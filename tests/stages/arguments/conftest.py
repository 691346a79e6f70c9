"""Snapshots: what users and caches rely on, frozen in JSON beside the tests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def frozen() -> Callable[[str, Any], None]:
    """Compares a value with `NAME.json`; UPDATE_SNAPSHOTS=1 writes it."""

    def check(name: str, value: Any) -> None:
        path = Path(__file__).with_name(f"{name}.json")
        text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        if os.environ.get("UPDATE_SNAPSHOTS"):
            path.write_text(text, encoding="utf-8")
        assert json.loads(text) == json.loads(path.read_text(encoding="utf-8"))

    return check
