"""The loss curve is a picture of the size that the UI expects, drawn from whatever there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.training.curve import draw_loss_curve

TRAINED = [{"step": step, "loss": 2.0 / step} for step in range(1, 30)]


@pytest.mark.parametrize(
    "history", [[], TRAINED[:1], TRAINED, [*TRAINED, {"step": 10, "eval_loss": 1.0}]], ids=["no", "one", "many", "eval"]
)
def test_draw(tmp_path: Path, history: list[dict[str, Any]]) -> None:
    from PIL import Image

    draw_loss_curve(history, tmp_path / "images" / "train_loss.png")
    with Image.open(tmp_path / "images" / "train_loss.png") as picture:
        assert picture.size == (900, 540)
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["train_loss.png"]
