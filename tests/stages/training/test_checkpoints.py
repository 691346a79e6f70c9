"""Only what was written to its end counts, and something that counts is always there."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.train import can_resume
from stages.training.checkpoints import Checkpoints


def write(checkpoints: Checkpoints, step: int, best: int | None = None) -> None:
    checkpoints.begin(step)
    folder = checkpoints.path(step)
    folder.mkdir()
    for name in ("adapter_model.safetensors", "optimizer.pt", "trainer_state.json"):
        (folder / name).write_text(f"{name} {step}")
    checkpoints.finish(step, best=best)


def test_half_written_ones_do_not_count(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest() is None
    write(checkpoints, 9)
    write(checkpoints, 10)
    checkpoints.path(11).mkdir()
    (checkpoints.path(11) / "optimizer.pt").write_text("half")
    (tmp_path / "checkpoint-best").mkdir()
    assert checkpoints.complete() == [9, 10]
    assert checkpoints.newest() == checkpoints.path(10)
    assert can_resume(tmp_path)
    checkpoints.sweep()
    assert not checkpoints.path(11).exists()
    assert checkpoints.complete() == [9, 10]


def test_written_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 4)
    checkpoints.begin(4)
    assert checkpoints.newest() is None
    write(checkpoints, 4)
    assert checkpoints.complete() == [4]


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [(None, None, [2, 4, 6, 8]), (1, None, [8]), (2, None, [6, 8]), (1, 4, [4, 8]), (2, 8, [6, 8])],
)
def test_limit(tmp_path: Path, limit: int | None, best: int | None, kept: list[int]) -> None:
    checkpoints = Checkpoints(tmp_path, limit)
    for step in (2, 4, 6, 8):
        write(checkpoints, step, best if best is not None and best <= step else None)
    assert checkpoints.complete() == kept


def test_links(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "scratch")
    (tmp_path / "scratch").mkdir()
    write(checkpoints, 3)
    checkpoints.link_into(tmp_path / "kept", only_model=False)
    checkpoints.link_into(tmp_path / "kept", only_model=False)  # as after a retry
    names = {path.name for path in (tmp_path / "kept" / "checkpoint-3").iterdir()}
    assert names == {"adapter_model.safetensors", "optimizer.pt", "trainer_state.json"}
    checkpoints.link_into(tmp_path / "light", only_model=True)
    names = {path.name for path in (tmp_path / "light" / "checkpoint-3").iterdir()}
    assert names == {"adapter_model.safetensors", "trainer_state.json"}
