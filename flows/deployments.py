"""The flows that `prefect.yaml` deploys: one for every pipeline, one for every stage by itself.

    prefect deployment run sft-then-export/local -p model=M -p 'dataset=["D#500"]' -p lora_rank=16
    prefect deployment run merge/cpu -p model=sha256:… -p adapter=sha256:…

`flows.deployments.train` is made when it is asked for: a worker that runs one stage makes one flow.
"""

from __future__ import annotations

from typing import Any

from prefect import Flow

from flows.flow import flow_for, stage_flow
from flows.parameters import deployed_output_folder
from flows.pipeline import PIPELINE_NAMES, get_pipeline
from stages.registry import STAGE_NAMES

__all__ = ["get_flow"]


def get_flow(name: str) -> Flow[..., dict[str, Any]]:
    """The flow called `name`: a pipeline, or a stage by itself."""
    dashed = name.replace("_", "-")
    if dashed in PIPELINE_NAMES:
        return flow_for(get_pipeline(dashed), place=deployed_output_folder)
    return stage_flow(name)


def __getattr__(name: str) -> Flow[..., Any]:
    if name == "check":
        from flows.server.check import check

        return check
    if name in STAGE_NAMES or name.replace("_", "-") in PIPELINE_NAMES:
        return get_flow(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
