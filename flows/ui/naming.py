"""Names and tags that tell one run from another in the UI: `SmolLM2 · alpaca · r16`, `model:SmolLM2`, `data:alpaca`.

A stage that is given artifacts by digest is named after what they were made of, as far as the store knows it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flows.output import model_suffix
from stages.arguments import TrainArguments
from stages.artifacts.lineage import lineage
from stages.artifacts.store import open_store
from stages.errors import MartletError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from stages.artifacts.manifest import Manifest
    from stages.artifacts.store import Store

__all__ = ["describe", "known_of", "run_name", "tag_run", "tags_of"]

logger = logging.getLogger("martlet.ui")

ROWS = re.compile(r"\.(jsonl?|csv|parquet|txt)(\.gz)?$")
BY_PREFECT = re.compile(r"[A-Za-z]+-[A-Za-z]+")
"""The names that Prefect thinks of: vigilant-monkey, and in its form Practical-Kishu. Others are a user's."""
MAX_TAGGED_DATASETS = 3
UNKNOWN = "artifact"
"""Stands beside the parameters for an artifact that the store does not know."""
LOCAL = "local::"
"""How a stage's arguments speak of a file that is handed in as an input."""
HANDED_IN = {"source": "model", "model": "model", "dataset": "dataset"}
"""The parameter that an input stands for if it is a user's own."""


def describe(parameters: Mapping[str, Any]) -> str:
    """The model, the data and what is unusual about the training, as far as they were given."""
    parts = []
    if model := _model(parameters) or parameters.get(UNKNOWN):
        parts.append(model)
    datasets = _datasets(parameters)
    if datasets:
        parts.append(datasets[0] + (f" +{len(datasets) - 1}" if len(datasets) > 1 else ""))
    if parameters.get("train_type") not in (None, "lora"):
        parts.append(str(parameters["train_type"]))
    elif parameters.get("lora_rank"):
        parts.append(f"r{parameters['lora_rank']}")
    method, bits = parameters.get("quant_method"), parameters.get("quant_bits")
    if method or bits:
        parts.append("-".join([*([str(method)] if method else []), *([f"int{bits}"] if bits else [])]))
    return " · ".join(parts)


def tags_of(parameters: Mapping[str, Any]) -> list[str]:
    """What runs are looked for by: the model, and the data."""
    model = _model(parameters)
    tags = [f"model:{model}"] if model else []
    return tags + [f"data:{name}" for name in _datasets(parameters)[:MAX_TAGGED_DATASETS]]


def _model(parameters: Mapping[str, Any]) -> str:
    given = parameters.get("model") or parameters.get("ckpt_dir") or ""
    first = next(iter(given), "") if isinstance(given, list) else given
    return model_suffix(str(first)) if first else ""


def _datasets(parameters: Mapping[str, Any]) -> list[str]:
    """`hf::tatsu-lab/alpaca:default#500` → `alpaca`."""
    given = parameters.get("dataset") or []
    return [_dataset(str(one)) for one in ([given] if isinstance(given, str) else given)]


def _dataset(given: str) -> str:
    place = re.sub(r"#\d+$", "", given).rsplit("::", 1)[-1].rstrip("/")
    return ROWS.sub("", re.sub(r":[^/:]*$", "", place.rsplit("/", 1)[-1]))


def known_of(digests: Mapping[str, str], store: Store) -> dict[str, Any]:
    """The parameters that artifacts were made with, from the nearest stage that has them.

    Args:
        digests: by the name of the input; what a user handed in is known by its path.
        store: that has them.
    """
    known: dict[str, Any] = {}
    for name, digest in digests.items():
        reference = store.find(digest)
        manifests = [manifest for node in lineage(store, reference) for manifest in store.manifests(node.artifact)[:1]]
        for manifest in manifests:
            known = {**_known(manifest, store), **known}
        if not manifests and name in HANDED_IN:
            known = {HANDED_IN[name]: store.taken_in_from(reference), **known}
    return known


def _known(manifest: Manifest, store: Store) -> dict[str, Any]:
    arguments = manifest.body.get("arguments", {})
    match manifest.stage:
        case "download":
            return {"model": manifest.metrics.get("name")}
        case "preprocess":
            given = [one for one in arguments.get("dataset", []) if not one.startswith(LOCAL)]
            local = manifest.inputs.get("dataset")
            return {"dataset": given + (store.taken_in_from(local) if local else [])}
        case "train":
            rank = arguments.get("lora_rank", TrainArguments.model_fields["lora_rank"].default)
            return {"train_type": arguments.get("train_type", "lora"), "lora_rank": rank}
        case "quantize":
            return {name: arguments[name] for name in ("quant_method", "quant_bits") if name in arguments}
    return {}


def _facts(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, and what the artifacts that were given by digest were made with."""
    values = {**parameters, **(parameters.get("artifacts") or {})}
    digests = {name: value for name, value in values.items() if isinstance(value, str) and value.startswith("sha256:")}
    if not digests:
        return dict(parameters)
    given = {
        name: value for name, value in parameters.items() if name not in digests and not _stands_for_another(value)
    }
    try:
        return {**known_of(digests, open_store()), **given}
    except MartletError:  # the run itself will say what is wrong with them
        kind, digest = next(iter(digests.items()))
        return {**given, UNKNOWN: f"{kind} {digest.removeprefix('sha256:')[:8]}"}


def _stands_for_another(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return value is None or any(str(one).startswith(LOCAL) for one in values)


def run_name() -> str:
    """Prefect calls this inside the flow run that it names; a name that a user gave stays."""
    from prefect.runtime import flow_run

    if flow_run.name and not BY_PREFECT.fullmatch(flow_run.name):
        return str(flow_run.name)
    return describe(_facts(flow_run.parameters)) or flow_run.flow_name


def tag_run(flow_run: FlowRun) -> None:
    """Adds what runs are looked for by to the tags of the run that has begun."""
    from prefect.client.orchestration import get_client

    tags = [*flow_run.tags, *(tag for tag in tags_of(_facts(flow_run.parameters)) if tag not in flow_run.tags)]
    if tags == flow_run.tags:
        return
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, tags=tags)
    except Exception as error:  # a tag is not worth a run
        logger.warning("the run could not be tagged: %s", error)
