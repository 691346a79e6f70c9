"""What a worker makes of a pool's template, as JSON; run by the interpreter of the environment `worker`.

python render.py kubernetes TEMPLATE '{"gpus": 1}'
"""

import asyncio
import json
import sys
import uuid
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import FlowRun


def configuration(kind: str, template: str, variables: dict[str, Any]) -> Any:
    """The job of a flow run, as the worker of this kind prepares it."""
    if kind == "kubernetes":
        from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration as Configuration
    elif kind == "docker":
        from prefect_docker.worker import DockerWorkerJobConfiguration as Configuration
    else:
        from prefect.workers.process import ProcessJobConfiguration as Configuration
    filled = Configuration.from_template_and_values(json.loads(Path(template).read_text()), variables, client=object())
    job = asyncio.run(filled)
    job.prepare_for_flow_run(FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4(), name="SmolLM2 · alpaca · r16"))
    return job


if __name__ == "__main__":
    rendered = [configuration(sys.argv[1], sys.argv[2], each) for each in json.loads(sys.argv[3])]
    print(json.dumps([job.model_dump(mode="json", exclude_none=True) for job in rendered]))
