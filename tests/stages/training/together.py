"""What torchrun starts in tests: the trainings of jobs.json one after the other, each by all processes together.

`python -m torch.distributed.run … tests/stages/training/together.py FOLDER`; to start Python once is dearer than to
train a dozen tiny models.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from stages.train import train_here
from stages.training import group
from tests.stages.training import lab


def main(folder: Path) -> None:
    lab.train = train_here  # a GPU is not asked for
    share_weights_on_cpu()
    for name, job in json.loads((folder / "jobs.json").read_text()).items():
        here = lab.Lab(folder / name, Path(job["model"]), Path(job["tokens"]))
        here.inputs["plugins"] = Path(job["plugins"])
        cut = job.get("cut")
        if cut is not None:
            try:
                here.run(job["arguments"], lab.Recorder(cut=cut))
            except lab.PowerCut:
                group.wait()
        metrics = here.run(job["arguments"])
        if group.is_first():
            (folder / name / "out").symlink_to(here.out)
            (folder / name / "metrics.json").write_text(json.dumps(metrics))


def share_weights_on_cpu() -> None:
    """Where there is no GPU, accelerate leaves FSDP out without a word; torch can do it on CPUs."""
    from accelerate.state import AcceleratorState, DistributedType, PartialState

    before = AcceleratorState.__init__

    def after(self: Any, *args: Any, fsdp_plugin: Any = None, **others: Any) -> None:
        before(self, *args, fsdp_plugin=fsdp_plugin, **others)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = self.distributed_type

    AcceleratorState.__init__ = after


if __name__ == "__main__":
    main(Path(sys.argv[1]))
