"""Names that tell one run from another in the UI: `SmolLM2 · alpaca · r16`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flows.output import model_suffix

__all__ = ["describe", "run_name"]


def describe(parameters: Mapping[str, Any]) -> str:
    """The model, the data and what is unusual about the training, as far as they were given."""
    parts = []
    if parameters.get("model") or parameters.get("ckpt_dir"):
        parts.append(model_suffix(str(parameters.get("model") or parameters["ckpt_dir"])))
    for dataset in (parameters.get("dataset") or [])[:1]:
        name = re.sub(r"#\d+$", "", str(dataset)).rsplit("::", 1)[-1].rstrip("/").rsplit("/", 1)[-1]
        parts.append(re.sub(r"\.(jsonl?|csv|parquet|txt)(\.gz)?$", "", name))
    if parameters.get("train_type") not in (None, "lora"):
        parts.append(str(parameters["train_type"]))
    elif parameters.get("lora_rank"):
        parts.append(f"r{parameters['lora_rank']}")
    if parameters.get("quant_method"):
        parts.append(f"{parameters['quant_method']}-int{parameters.get('quant_bits')}")
    return " · ".join(parts)


def run_name() -> str:
    """Prefect calls this inside the flow run that it names."""
    from prefect.runtime import flow_run

    return describe(flow_run.parameters) or flow_run.flow_name
