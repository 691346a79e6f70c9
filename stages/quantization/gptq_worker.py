"""The process that GPTQModel works in: `python -m stages.quantization.gptq_worker JOB.json`; see `gptq.py`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from stages.child import emit

SETTINGS = {
    "GPTQMODEL_CPU_WORKERS": "2",
    # Packing in C++ saves a second or two, but is compiled first, for 25 seconds, where there is a compiler at all.
    "GPTQMODEL_DISABLE_PACK_EXT": "1",
    "GPTQMODEL_DISABLE_GIL_WARNING": "1",
    "LOGBAR_ANIMATION": "0",
    "HF_HUB_OFFLINE": "1",
}


def main() -> None:
    """Quantizes as the job says and saves the result."""
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)

    import numpy as np
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.models.auto import SUPPORTED_MODELS

    from stages.errors import ModelError

    family = json.loads((Path(job["model"]) / "config.json").read_text(encoding="utf-8")).get("model_type")
    if family not in SUPPORTED_MODELS:
        raise ModelError(f"GPTQModel cannot quantize models of type {family!r}: use `--quant_method bnb`")
    torch.manual_seed(0)
    config = QuantizeConfig(
        bits=job["bits"],
        group_size=job["group_size"],
        act_group_aware=job["group_size"] > 0,  # without groups there is no order of them
        offload_to_disk=True,
        offload_to_disk_path=job["offload"],
    )
    devices = job["device_map"]
    placing = {"device": devices[""]} if list(devices) == [""] else {"device_map": devices}
    model = GPTQModel.load(job["model"], config, dtype=getattr(torch, job["dtype"]), trust_remote_code=False, **placing)
    total = model.model.config.get_text_config().num_hidden_layers
    model.layer_callback = Progress(total, job["bits"])
    blocks = np.load(job["blocks"])
    rows = [{"input_ids": block.tolist(), "attention_mask": [1] * len(block)} for block in blocks]
    model.quantize(rows, batch_size=job["batch_size"])
    emit(done=total, total=total, text="writing the quantized weights")
    model.save(job["out"], max_shard_size=job["shard_bytes"])


class Progress:
    """Tells the parent of each decoder layer that is done."""

    def __init__(self, total: int, bits: int) -> None:
        self.total = total
        self.bits = bits
        self.done: set[int] = set()

    def layer_complete(self, *, layer_idx: int, submodule_finalized: bool) -> None:
        """Called by GPTQModel, more than once a layer."""
        if layer_idx not in self.done:
            self.done.add(layer_idx)
            text = f"GPTQ in {self.bits} bits: {len(self.done)} of {self.total} layers"
            emit(done=len(self.done), total=self.total, text=text)


if __name__ == "__main__":
    main()
