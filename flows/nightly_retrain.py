"""Retraining: `martlet run configs/nightly-retrain.yaml`, by a schedule or by an event.

Branches and files are looked up anew in each run. If nothing has changed, all stages are in the store. If something
has, the new model and the one before it are measured on the same rows, today's, and what is better is published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.export import publish, quantize
from flows.metrics import is_better
from flows.parameters import given_parameters
from flows.pipeline import Call, Given, Known, Pipeline, Step
from stages.arguments import NightlyRetrainArguments
from stages.artifacts.reference import ArtifactRef
from stages.artifacts.store import Store, open_store
from stages.errors import ArgumentsError, UnknownReference
from stages.training.tuners import leaves_model

__all__ = ["PIPELINE", "nightly_retrain"]

NAME = "nightly-retrain"
SAME = ("model", "dataset", "hub_model_id")
"""Parameters that make two runs the same retraining."""
DONE = ("ran", "cached", "resumed")

Record = Mapping[str, Any]
Arguments = NightlyRetrainArguments


def nightly_retrain(arguments: Arguments, call: Call) -> None:
    """Fine-tunes, merges, quantizes, and publishes what beats the model before it."""
    store = open_store()
    last = find_last(arguments, store)
    model = call("download")
    dataset = call("preprocess")
    tokens = call("tokenize", dataset=dataset, model=model)
    start = None
    if arguments.retrain_from == "published":
        start = find_start(arguments, store, call.known(tokens), last)
    trained = call("train", model=model, tokens=tokens, adapter=Given(start) if start else None)
    if leaves_model(arguments.train_type):
        call.skip("merge", f"--train_type {arguments.train_type} leaves nothing to merge")
        merged = trained
    else:
        merged = call("merge", model=model, adapter=trained)
    product = quantize(arguments, call, merged, tokens) or merged
    report = call("evaluate", label="new", model=product, tokens=tokens)
    made = call.known(product)
    if last is not None and made is not None and made.artifact == last.model:
        call.skip("evaluate", f"nothing has changed since {last.name}", label="former")
        call.skip("push_to_hub", f"nothing has changed since {last.name}, whose model this is")
        return
    former = named_former(arguments, store) or last
    if former is None:
        call.skip("evaluate", "there is no model before this one", label="former")
        publish(arguments, call, product, report)
        return
    before = call("evaluate", label="former", model=Given(former.model), tokens=tokens)
    publish_if_better(arguments, call, product, report, before, former)


def publish_if_better(
    arguments: Arguments, call: Call, product: Step, report: Step, before: Step, former: Former
) -> None:
    """Publishes the new model if it beats the former one, and says the figures if not."""
    metric = arguments.compare_by
    new, old = _figure(call.known(report), metric), _figure(call.known(before), metric)
    if new is None or old is None:
        call.undecided("push_to_hub", f"runs if {metric} is better than that of {former.name}")
    elif not is_better(new, old, metric):
        call.skip("push_to_hub", f"not better: {metric} {new:.4f}, and {old:.4f} of {former.name}")
    elif not arguments.push_to_hub:
        call.skip("push_to_hub", f"better: {metric} {new:.4f}, {old:.4f} of {former.name}; --push_to_hub was not given")
    else:
        publish(arguments, call, product, report)


def _figure(known: Known | None, metric: str) -> float | None:
    """What was measured; None while nothing is known."""
    if known is None:
        return None
    value = known.metrics.get(metric)
    if isinstance(value, bool) or not isinstance(value, int | float):
        numbers = ", ".join(name for name, value in known.metrics.items() if isinstance(value, int | float))
        raise ArgumentsError(f"--compare_by {metric} was not measured. Choose from: {numbers or 'nothing'}")
    return float(value)


@dataclass(frozen=True)
class Former:
    """The model to beat.

    Attributes:
        name: what a person knows it by.
        model: what was measured, and shipped if a hub was given.
        adapter: what it was merged from; None if it was named by hand or all weights were trained.
    """

    name: str
    model: ArtifactRef | Path
    adapter: ArtifactRef | None = None


def named_former(arguments: Arguments, store: Store) -> Former | None:
    """The model that is named as the one to beat, if one is."""
    named = arguments.former_model
    if named is None:
        return None
    return Former(named, store.find(named) if named.startswith("sha256:") else Path(named).expanduser())


def find_last(arguments: Arguments, store: Store) -> Former | None:
    """The model that the last run published, or accepted if this one is not to publish.

    Raises:
        UnknownReference: it is to be compared with, and is no longer in the store.
    """
    for record in _runs(arguments, store):
        if _published(record) if arguments.push_to_hub else _accepted(record):
            return _former_of(record, arguments, store)
    return None


def _former_of(record: Record, arguments: Arguments, store: Store) -> Former | None:
    new, trained = _line(record, "evaluate", "new"), _line(record, "train")
    if new is None or trained is None:
        return None
    model, adapter = (ArtifactRef.from_json(ref) for ref in (new["inputs"]["model"], trained["artifact"]))
    name = f"run {record['run'][:8]}"
    try:
        store.tree(model)
    except UnknownReference:
        if arguments.former_model is not None:
            return None
        raise UnknownReference(
            f"the model of {name}, which a new one has to beat, is no longer in the store: name one with --former_model"
        ) from None
    return Former(name, model, adapter if adapter.kind == "adapter" else None)


def find_start(arguments: Arguments, store: Store, tokens: Known | None, last: Former | None) -> ArtifactRef | None:
    """The adapter that training starts with: for rows that were trained on before, the one it started with then.

    Otherwise a run would go on from its own result each night, though nothing has changed.
    """
    for record in _runs(arguments, store):
        line = _line(record, "train")
        if line is not None and tokens is not None and line["inputs"]["tokens"]["digest"] == tokens.artifact.digest:
            before = line["inputs"].get("adapter")
            return ArtifactRef.from_json(before) if before else None
    return last.adapter if last else None


def _runs(arguments: Arguments, store: Store) -> Iterator[Record]:
    """The former runs of this retraining, newest first."""
    mine = given_parameters(arguments)
    for record in store.runs():
        theirs = record.get("arguments", {})
        if record["flow"] == NAME and all(_many(theirs.get(name)) == _many(mine.get(name)) for name in SAME):
            yield record


def _many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _line(record: Record, stage: str, label: str = "") -> dict[str, Any] | None:
    """A stage of a run, if it has a result."""
    lines = [line for line in record["stages"] if (line["stage"], line["label"]) == (stage, label)]
    return next((line for line in lines if line["status"] in DONE), None)


def _published(record: Record) -> bool:
    return _line(record, "push_to_hub") is not None


def _accepted(record: Record) -> bool:
    """Whether the run's model was the first, or better than the one before it."""
    new, former = _line(record, "evaluate", "new"), _line(record, "evaluate", "former")
    if new is None or _line(record, "train") is None:
        return False
    metric = record["arguments"].get("compare_by", "eval_loss")
    figures = [line["metrics"].get(metric) for line in (new, former) if line is not None]
    if not all(isinstance(figure, int | float) for figure in figures):
        return False
    return len(figures) == 1 or is_better(figures[0], figures[1], metric)


PIPELINE = Pipeline(
    NAME,
    nightly_retrain,
    NightlyRetrainArguments,
    "train anew if the data or the model has changed, and publish what is better than before",
)
