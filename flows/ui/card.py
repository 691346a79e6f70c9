"""The model card of a run, made of what its record and manifests know: `model_card(record, manifests)`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flows.record import RunRecord, StageRecord
from flows.ui.words import figure, joined, label, table
from stages.artifacts.describe import size_text
from stages.artifacts.manifest import Manifest

__all__ = ["PRODUCTS", "evaluations", "model_card"]

PRODUCTS = ("quantize", "merge", "train")
"""The stages that make a model, the last word first."""
KIND = {"model": "Whole model", "adapter": "LoRA adapter"}
MAX_VALUE_LENGTH = 200
OF_DATA = {
    "train_rows": "rows to train on",
    "validation_rows": "rows held out",
    "train_tokens": "tokens",
    "train_trained_tokens": "tokens learnt",
    "max_length": "tokens of a row at most",
}

LOAD_MODEL = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{path}")
tokenizer = AutoTokenizer.from_pretrained("{path}")
```"""
LOAD_ADAPTER = """```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("{path}")
```"""


def model_card(record: RunRecord, manifests: Mapping[str, Manifest]) -> str:
    """What was made, of what, how, how good it is, and how it is loaded; empty if the run made no model."""
    product = next(
        (line for stage in PRODUCTS for line in record.stages if line.stage == stage and line.artifact), None
    )
    if product is None or product.artifact is None:
        return ""
    artifact = product.artifact
    what = f"{KIND.get(artifact.kind, artifact.kind)}, {size_text(artifact.size)}, `{artifact.digest}`"
    sections = [
        ("", what + (f"\n\n`{product.path}`" if product.path else "")),
        ("Evaluation", evaluations(record)),
        ("Base model", _base(record)),
        ("Data", _data(record)),
        ("Training", _training(record, manifests)),
        ("Quantization", _arguments(manifests.get("quantize"))),
        ("Use", _use(artifact.kind, product, artifact.digest, record.arguments.get("num_labels"))),
        ("Made by", _lineage(record, manifests)),
    ]
    parts = [f"### {heading}\n\n{text}" if heading else text for heading, text in sections if text]
    return "\n\n".join(parts)


def evaluations(record: RunRecord) -> str:
    """One row for each model that was evaluated, one column for each metric."""
    lines = [line for line in record.stages if line.stage == "evaluate" and line.metrics]
    names = list(dict.fromkeys(name for line in lines for name, value in line.metrics.items() if _is_figure(value)))
    rows = [[line.label or "model", *(_cell(name, line.metrics) for name in names)] for line in lines]
    headers = ["held-out loss" if name == "eval_loss" else label(name) for name in names]
    return table(["evaluated", *headers], rows, right=range(1, len(names) + 1))


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(name: str, metrics: Mapping[str, Any]) -> str:
    return figure(name, metrics[name]) if name in metrics else ""


def _first(record: RunRecord, stage: str) -> StageRecord | None:
    return next((line for line in record.stages if line.stage == stage and line.artifact), None)


def _base(record: RunRecord) -> str:
    line = _first(record, "download")
    if line is None or line.artifact is None:
        return ""
    rows = [["model", f"`{record.arguments.get('model') or line.arguments.get('model')}`"]]
    rows += [[label(name), figure(name, value)] for name, value in line.metrics.items() if name != "name"]
    rows.append(["digest", f"`{line.artifact.digest[:19]}`"])
    return table(["", ""], rows)


def _data(record: RunRecord) -> str:
    rows, tokens = _first(record, "preprocess"), _first(record, "tokenize")
    if rows is None or rows.artifact is None:
        return ""
    datasets = record.arguments.get("dataset") or rows.arguments.get("dataset") or []
    datasets = [datasets] if isinstance(datasets, str) else datasets
    known = {**rows.metrics, **(tokens.metrics if tokens else {})}
    lines = [["dataset", "<br>".join(f"`{dataset}`" for dataset in datasets)]]
    lines += [[words, figure(name, known[name])] for name, words in OF_DATA.items() if known.get(name) is not None]
    lines.append(["digest", f"`{rows.artifact.digest[:19]}`"])
    return table(["", ""], lines)


def _training(record: RunRecord, manifests: Mapping[str, Manifest]) -> str:
    """What was given, and what is always worth knowing."""
    line = _first(record, "train")
    if line is None:
        return ""
    always = ("train_type", "learning_rate", "num_train_epochs", "per_device_train_batch_size", "seed")
    lora = ("lora_rank", "lora_alpha", "target_modules") if line.arguments.get("train_type") == "lora" else ()
    shown = {name: line.arguments[name] for name in (*always, *lora) if name in line.arguments}
    manifest = manifests.get(line.title)
    given = manifest.body.get("arguments", {}) if manifest else {}
    rows = [[f"`{name}`", _value(value)] for name, value in {**shown, **given}.items()]
    rows += [[label(name), figure(name, value)] for name, value in joined(line.metrics).items()]
    return table(["", ""], rows)


def _arguments(manifest: Manifest | None) -> str:
    given = manifest.body.get("arguments", {}) if manifest else {}
    return table(["", ""], [[f"`{name}`", _value(value)] for name, value in given.items()])


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))[:MAX_VALUE_LENGTH]
    return (f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"'))[:MAX_VALUE_LENGTH]


def _use(kind: str, product: StageRecord, digest: str, num_labels: int | None = None) -> str:
    path = product.path or "FOLDER"
    load = (LOAD_ADAPTER if kind == "adapter" else LOAD_MODEL).format(path=path)
    if num_labels is not None:
        load = load.replace("ForCausalLM", "ForSequenceClassification")
        if kind == "adapter":
            load = load.replace(f'("{path}")\n```', f'("{path}", num_labels={num_labels})\n```')
    if product.path:
        return load
    return f"```\nmartlet artifacts export {digest[:19]} FOLDER\n```\n\n{load}"


def _lineage(record: RunRecord, manifests: Mapping[str, Manifest]) -> str:
    """Every artifact on the way, the code and the libraries: what it takes to make it again."""
    rows = [
        [
            line.title,
            line.artifact.kind,
            f"`{line.artifact.digest[:19]}`",
            manifests[line.title].ended[:16].replace("T", " "),
        ]
        for line in record.stages
        if line.artifact and line.title in manifests
    ]
    parts = [table(["stage", "artifact", "digest", "made (UTC)"], rows)]
    made = [manifests[line.title] for line in record.stages if line.title in manifests]
    libraries = {name: version for manifest in made for name, version in manifest.body.get("libraries", {}).items()}
    if libraries:
        parts.append(", ".join(f"{name} {version}" for name, version in sorted(libraries.items())))
    commits = dict.fromkeys(manifest.machine.get("commit") for manifest in made if manifest.machine.get("commit"))
    if commits:
        parts.append(f"Martlet {', '.join(str(commit)[:12] for commit in commits)}")
    return "\n\n".join(part for part in parts if part)
