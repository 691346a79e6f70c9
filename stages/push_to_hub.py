"""Publishes a model or an adapter on Hugging Face or ModelScope.

`HF_TOKEN=… python -m stages push_to_hub --input model=DIGEST --hub_model_id me/my-model --use_hf true`
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from stages.arguments import PushToHubArguments
from stages.context import Context
from stages.errors import ModelError, UserError
from stages.links import link_or_copy
from stages.publishing.hub import check_repo_id
from stages.sources.location import default_hub
from stages.stage import Input, Inputs, Metrics, Prepared, Stage

if TYPE_CHECKING:
    from stages.publishing.hub import Hub

__all__ = ["STAGE", "push_to_hub"]

TOKENS = {"hf": "HF_TOKEN", "ms": "MODELSCOPE_API_TOKEN"}
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", "pytorch_model.bin")
WEIGHTS_INDEX = ("pytorch_model.bin.index.json",)


def prepare(arguments: PushToHubArguments) -> Prepared[PushToHubArguments]:
    """Checks the repository's name, and settles which hub is meant.

    Raises:
        ArgumentsError: no hub takes such a name.
    """
    check_repo_id(arguments.hub_model_id or "")
    use_hf = default_hub(arguments.use_hf) == "hf"
    return Prepared(arguments.model_copy(update={"use_hf": use_hf}))


def push_to_hub(arguments: PushToHubArguments, inputs: Inputs, out: Path, context: Context) -> Metrics:
    """Uploads the folder in one commit and writes `publication.json`: hub, repo_id, commit, url.

    The token is a secret of the context and is in no log and no file. Whether the hub takes it is asked before
    anything is made or sent.

    Args:
        arguments: where to, and the commit's message.
        inputs: `model`, a model or an adapter; `report`, put into `evaluation/`.
        out: the publication.
        context: has HF_TOKEN or MODELSCOPE_API_TOKEN.

    Raises:
        UserError: no token, or one that the hub refuses; a public repository where a private one is wanted.
        ModelError: the folder holds no weights.
        StageFailed: the hub cannot be reached; the same command goes on.
    """
    repo_id = arguments.hub_model_id or ""
    check_repo_id(repo_id)
    _check_model(inputs["model"])
    hub = _open(arguments, context)
    context.logger.info("%s: pushing to %s as %s", hub.title, repo_id, hub.user())
    hub.make_repository(repo_id, private=arguments.hub_private_repo)
    folder = _gather(inputs, context.scratch / "upload")
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    context.reporter.progress(0, size, f"uploading {len(files)} files, {size / 1e6:.1f} MB, to {repo_id}")
    published = hub.upload(folder, repo_id, arguments.commit_message)
    context.reporter.progress(size, size, f"uploaded {len(files)} files, {size / 1e6:.1f} MB, to {repo_id}")
    context.logger.info("published: %s", published.url)
    record = {"hub": _hub_name(arguments), "repo_id": repo_id, "commit": published.commit, "url": published.url}
    (out / "publication.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record | {"num_files": len(files), "size_bytes": size}


def _hub_name(arguments: PushToHubArguments) -> str:
    return default_hub(arguments.use_hf)


def _open(arguments: PushToHubArguments, context: Context) -> Hub:
    name = _hub_name(arguments)
    token = context.secret(TOKENS[name])
    if not token:
        other = " (or `--use_hf true` and HF_TOKEN for Hugging Face)" if name == "ms" else ""
        raise UserError(f"push_to_hub needs a token: set the environment variable {TOKENS[name]}{other}")
    if name == "hf":
        from stages.publishing.hugging_face import HuggingFace

        return HuggingFace(token)
    from stages.publishing.model_scope import ModelScope

    return ModelScope(token)


def _check_model(folder: Path) -> None:
    if not any((folder / name).exists() for name in (*WEIGHTS, *WEIGHTS_INDEX)):
        raise ModelError("the input model holds neither a model's nor an adapter's weights: there is nothing to push")


def _gather(inputs: Inputs, folder: Path) -> Path:
    """All that is uploaded, as links: the model's files, and the report in `evaluation/`."""
    shutil.rmtree(folder, ignore_errors=True)
    places = {"": inputs["model"]} | ({"evaluation": inputs["report"]} if "report" in inputs else {})
    for place, source in places.items():
        for path in sorted(source.rglob("*")):
            if path.is_file():
                target = folder / place / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(path, target)
    return folder


STAGE = Stage(
    name="push_to_hub",
    version=1,
    arguments=PushToHubArguments,
    inputs={
        "model": Input(kinds=("model", "adapter"), help="what to publish"),
        "report": Input(kinds=("report",), required=False, help="its evaluation, published with it"),
    },
    output="publication",
    function=push_to_hub,
    cacheable=False,
    prepare=prepare,
)
