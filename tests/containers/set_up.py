"""In place of `martlet setup` in a test of compose.yaml: a docker pool whose containers join the network of the server.

python set_up.py '{"networks": ["martlet"]}'      makes the pool with these defaults, and download/cpu, quantize/gpu
"""

import json
import os
import sys
from pathlib import Path

import httpx

API = os.environ["PREFECT_API_URL"]


def post(path: str, body: dict[str, object]) -> dict[str, object]:
    """Creates something and gives the answer."""
    answer = httpx.post(f"{API}/{path}", json=body, timeout=30)
    answer.raise_for_status()
    made: dict[str, object] = answer.json()
    return made


template = json.loads(Path("/opt/martlet/containers/pools/docker.json").read_text())
for name, value in json.loads(sys.argv[1]).items():
    template["variables"]["properties"][name]["default"] = value
post("work_pools/", {"name": "martlet", "type": "docker", "base_job_template": template})
for queue, stage in (("cpu", "download"), ("gpu", "quantize")):
    post("work_pools/martlet/queues", {"name": queue})
    flow = post("flows/", {"name": stage})
    place = {"work_pool_name": "martlet", "work_queue_name": queue}
    post("deployments/", {"name": queue, "flow_id": flow["id"], "entrypoint": f"flows.deployments.{stage}", **place})
