"""Every recipe that is shipped names a flow, and its parameters pass the checks."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.arguments.command_line import parse
from stages.arguments.recipe import load_recipe, recipe_arguments

CONFIGS = Path(__file__).parents[2] / "configs"
PRICES = CONFIGS / "prices.yaml"
RECIPES = sorted(set(CONFIGS.glob("*.yaml")) - {PRICES})


def test_the_quick_start_is_among_them() -> None:
    assert "quickstart.yaml" in [path.name for path in RECIPES]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe(path: Path) -> None:
    flow, base = load_recipe(path)
    assert flow == parse([], recipe_arguments(flow), base=base).NAME
