"""What every method's tests look at: what was trained, what moved, and what came of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.arguments import MergeArguments
from stages.context import Context
from stages.merge import merge
from tests.stages.training.lab import SHORT, Lab, PowerCut, Recorder, digests
from tests.stages.training.tokens import write_arrow

VOCABULARY = 384
PLAIN = SHORT | {"save_steps": 1, "logging_steps": 1, "max_steps": 4, "lora_dropout": 0.0}
"""Steps whose losses are to be computed again: each is logged, and nothing is drawn but the start."""


def write_tokens(folder: Path, count: int = 8) -> Path:
    """Rows of 4 to 12 random tokens, all of them trained."""
    generator = random.Random(0)
    folder.mkdir(parents=True)
    ids = [[generator.randrange(VOCABULARY) for _ in range(generator.randint(4, 12))] for _ in range(count)]
    write_arrow(folder / "train.arrow", {"input_ids": ids, "labels": ids}, rows_a_batch=5)
    return folder


def base_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def logits_of(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor([[3, 14, 15, 92, 65, 35, 89]])).logits.float()


def prepared(lab: Lab, arguments: Mapping[str, Any]) -> Any:
    """The model as it is before the first step."""
    from transformers import set_seed

    from stages.arguments import TrainArguments
    from stages.training.tuners import get_tuner

    given = TrainArguments(**arguments)
    set_seed(given.seed)
    tuner = get_tuner(given)
    model = base_model(lab.inputs["model"])
    tuner.check(model)
    return tuner.prepare(model)


def trained_names(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def merged(lab: Lab, adapter: Path) -> Any:
    """The model that the merge stage makes of the base as it was."""
    out = lab.folder / f"merged-{adapter.name}"
    out.mkdir()
    inputs = {"model": lab.inputs["model"], "adapter": adapter}
    merge(MergeArguments(), inputs, out, Context(lab.folder / "m", lab.folder / "m"))
    return base_model(out)


def batch_losses(
    model: Any, lab: Lab, arguments: Mapping[str, Any], extra: Any = None, after: Any = None
) -> list[float]:
    """The losses of a training that is written out here: the same rows, AdamW, the same learning rates.

    Args:
        model: with the right parameters trained.
        lab: whose rows are taken.
        arguments: of the run it is compared with.
        extra: a term of the loss, made of the model.
        after: called after each step of the optimizer.
    """
    import pyarrow as pa
    import torch

    with pa.memory_map(str(lab.inputs["tokens"] / "train.arrow")) as source:
        rows = pa.ipc.open_stream(source).read_all()["input_ids"].to_pylist()

    def loss_of(numbers: Sequence[int]) -> Any:
        chosen = [torch.tensor([rows[number]]) for number in numbers]
        count = sum(ids.shape[1] - 1 for ids in chosen)
        loss = sum(
            torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum") for ids in chosen
        )
        return loss / count + (0 if extra is None else extra(model))

    return written_out_losses(model, len(rows), arguments, loss_of, after)


def written_out_losses(
    model: Any, num_rows: int, arguments: Mapping[str, Any], loss_of: Callable[[Sequence[int]], Any], after: Any = None
) -> list[float]:
    """The losses of AdamW, in the order of rows and at the learning rates that the Trainer takes.

    Args:
        model: with the right parameters trained.
        num_rows: how many there are.
        arguments: of the run it is compared with.
        loss_of: the loss of a step, of the numbers of its rows.
        after: called after each step of the optimizer.
    """
    import torch
    from transformers import get_scheduler

    size = arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=arguments["learning_rate"], weight_decay=0.0)
    schedule = get_scheduler("cosine", optimizer, 0, arguments["max_steps"])
    losses: list[float] = []
    model.train()
    for epoch in range(arguments["max_steps"]):
        order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(42 + epoch)).tolist()
        for first in range(0, len(order), size):
            loss = loss_of(order[first : first + size])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if after is not None:
                after()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if len(losses) == arguments["max_steps"]:
                return losses
    raise AssertionError("no rows")


def logged_losses(lab: Lab) -> list[float]:
    import json

    lines = [json.loads(line) for line in (lab.attachments / "logging.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def check_resume(folder: Path, model: Path, tokens: Path, arguments: Mapping[str, Any]) -> Lab:
    """A run that is cut off in the middle of the fifth of six steps, and one that is not, end in the same bytes."""
    import pytest

    arguments = SHORT | {"save_total_limit": 2} | dict(arguments)
    whole, cut = Lab(folder / "whole", model, tokens), Lab(folder / "cut", model, tokens)
    undisturbed = whole.run(arguments)
    with pytest.raises(PowerCut):
        cut.run(arguments, Recorder(cut=4.5))
    assert (cut.scratch / "checkpoint-4" / "complete").exists()
    assert cut.run(arguments) == undisturbed
    assert digests(cut.out) == digests(whole.out)
    assert logged_losses(cut) == logged_losses(whole)
    return whole
