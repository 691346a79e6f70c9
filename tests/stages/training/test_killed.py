"""Ways of training, each killed in the middle of a step and begun again by another process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.stages.test_train import CHILD
from tests.stages.test_train import tokens as tokens
from tests.stages.training.lab import SHORT, digests

FULL = {"train_type": "full", "learning_rate": 1e-3, "gradient_checkpointing": True}
WAYS: dict[str, dict[str, Any]] = {
    "lisa and galore": FULL
    | {"lisa_activated_layers": 1, "lisa_step_interval": 3, "use_galore": True, "galore_update_proj_gap": 3},
    "q-galore": FULL | {"use_galore": True, "galore_quantization": True, "galore_proj_quant": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_killed_run_ends_in_the_same_bytes(tmp_path: Path, tiny_model: Path, tokens: Path, way: str) -> None:
    arguments = json.dumps(SHORT | WAYS[way])

    def start(folder: Path, wait: float) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", CHILD, folder, tiny_model, tokens, str(wait), arguments]
        return subprocess.Popen(list(map(str, command)))

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    child = start(cut, 4.5)
    assert start(whole, 1e9).wait() == 0
    while not (cut / "waiting").exists():
        assert child.poll() is None
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert start(cut, 1e9).wait() == 0
    assert digests(cut / "out") == digests(whole / "out")
