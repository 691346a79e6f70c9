"""Training on packs, weights, lazy rows and streams: the same bytes after a cut, the same losses as on plain rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import TrainArguments
from stages.errors import ArgumentsError, DataError, ModelError, UserError
from stages.training.feed import TOKEN_FILES, check_feed
from tests.stages.training.lab import SHORT, Lab, PowerCut, Recorder, digests
from tests.stages.training.later import LONG, questions, write_eager, write_lazy, write_stream
from tests.stages.training.tokens import write_arrow

ROWS = questions(14)
HELD_OUT = questions(20)[17:]
WITH_LONG = [*ROWS[:3], ("what?", LONG), *ROWS[3:]]
DELETE = {"truncation": "delete"}


def packed(folder: Path, model: Path) -> Path:
    write_eager(folder, ROWS, HELD_OUT, model)
    write_arrow(folder / "train_packs.arrow", {"rows": [[0, 5], [1, 2, 3], [4], [6, 7], [8, 9, 10], [11, 12, 13]]})
    return folder


def weighted(folder: Path, model: Path) -> Path:
    import numpy as np

    from stages.training.rows import read_rows

    write_eager(folder, ROWS, HELD_OUT, model)
    rows = [dict(row) for row in read_rows(folder / "train.arrow", 384)]
    for number, row in enumerate(rows):
        row["loss_scale"] = np.where(row["labels"] == -100, 0, 1 + (np.arange(len(row["labels"])) + number) % 3)
    names = ("input_ids", "labels", "loss_scale")
    (folder / "train.arrow").unlink()
    write_arrow(folder / "train.arrow", {name: [row[name].tolist() for row in rows] for name in names})
    return folder


def make(kind: str, folder: Path, model: Path) -> Path:
    if kind == "packed":
        return packed(folder, model)
    if kind == "weighted":
        return weighted(folder, model)
    if kind == "lazy":
        return write_lazy(folder, WITH_LONG, HELD_OUT, **DELETE)
    return write_stream(folder, WITH_LONG, packing=kind == "packed stream", **DELETE)


@pytest.mark.parametrize("kind", ["packed", "weighted", "lazy", "stream", "packed stream"])
def test_a_run_that_was_cut_off_ends_in_the_same_bytes(tmp_path: Path, tiny_model: Path, kind: str) -> None:
    """With dropout, in the middle of the fifth step; a stream is by then in its second pass over the data."""
    tokens = make(kind, tmp_path / "tokens", tiny_model)
    arguments = SHORT | {"lora_dropout": 0.2, "save_total_limit": 2}
    whole = Lab(tmp_path / "whole", tiny_model, tokens)
    undisturbed = whole.run(arguments)
    lab = Lab(tmp_path / "cut", tiny_model, tokens)
    with pytest.raises(PowerCut):
        lab.run(arguments, Recorder(cut=4.5))
    resumed = lab.run(arguments)
    assert digests(lab.out) == digests(whole.out)
    assert resumed == undisturbed
    logs = [(run.attachments / "logging.jsonl").read_text() for run in (whole, lab)]
    assert [line for line in logs[0].splitlines() if '"loss"' in line] == [
        line for line in logs[1].splitlines() if '"loss"' in line
    ]
    kept = {path.name for path in (lab.attachments / "checkpoint-6").iterdir()}
    assert ("place.json" in kept) == ("stream" in kind)
    assert sorted(path.name for path in lab.out.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_lazy_rows_train_as_eager_ones_do(tmp_path: Path, tiny_model: Path) -> None:
    eager = Lab(tmp_path / "eager", tiny_model, write_eager(tmp_path / "a", ROWS, HELD_OUT, tiny_model))
    lazy = Lab(tmp_path / "lazy", tiny_model, write_lazy(tmp_path / "b", ROWS, HELD_OUT))
    facts = [eager.run(SHORT), lazy.run(SHORT)]
    assert digests(eager.out) == digests(lazy.out)
    for name in ("num_tokens", "num_trained_tokens"):
        del facts[0][name]
    assert facts[0] == facts[1]
    assert facts[0]["num_rows"] == 14


def test_a_validation_row_that_cannot_be_used_changes_no_loss(tmp_path: Path, tiny_model: Path) -> None:
    arguments = SHORT | {"max_steps": 1, "per_device_eval_batch_size": 1}
    losses = []
    for number, some in enumerate((HELD_OUT, [HELD_OUT[0], ("what?", LONG), *HELD_OUT[1:]])):
        tokens = write_lazy(tmp_path / f"tokens{number}", ROWS, some, **DELETE)
        losses.append(Lab(tmp_path / str(number), tiny_model, tokens).run(arguments)["eval_loss"])
    assert losses[0] == losses[1]


def test_packs_train_as_their_rows_do(tmp_path: Path, tiny_model: Path) -> None:
    """One step over all rows, in packs or one by one: the same loss, the same gradient."""
    arguments = SHORT | {"max_steps": 1, "lora_dropout": 0, "per_device_train_batch_size": 1}
    packs = Lab(tmp_path / "packs", tiny_model, packed(tmp_path / "a", tiny_model))
    rows = Lab(tmp_path / "rows", tiny_model, write_eager(tmp_path / "b", ROWS, HELD_OUT, tiny_model))
    two = Lab(tmp_path / "two", tiny_model, packs.inputs["tokens"])
    together = packs.run(arguments | {"gradient_accumulation_steps": 6})
    batched = two.run(arguments | {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 2})
    alone = rows.run(arguments | {"gradient_accumulation_steps": 14})
    assert (together["num_rows"], together["num_packs"]) == (14, 6)
    for name in ("num_tokens", "num_trained_tokens"):
        assert together[name] == alone[name]
    for found in (together, batched):
        assert found["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-5)
        assert found["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-4)
    norms = [json.loads(log.read_text().splitlines()[0])["grad_norm"] for log in logs(packs, two, rows)]
    assert norms[0] == pytest.approx(norms[2], rel=1e-4)
    assert norms[1] == pytest.approx(norms[2], rel=1e-4)


def logs(*labs: Lab) -> list[Path]:
    return [lab.attachments / "logging.jsonl" for lab in labs]


def test_weights_against_another_computation(tmp_path: Path, tiny_model: Path) -> None:
    """Sum of weight times loss over all rows of a step, divided by its labels, however it is cut into batches."""
    import torch
    from torch.nn.functional import log_softmax
    from transformers import AutoModelForCausalLM

    from stages.training.rows import read_rows

    tokens = weighted(tmp_path / "tokens", tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model).double()
    total, count = 0.0, 0
    for row in read_rows(tokens / "train.arrow", 384):
        with torch.no_grad():
            logits = model(torch.tensor(row["input_ids"][None]).long()).logits[0]
        for at in range(1, len(row["input_ids"])):
            if (label := int(row["labels"][at])) != -100:
                total -= float(row["loss_scale"][at]) * float(log_softmax(logits[at - 1], -1)[label])
                count += 1
    arguments = SHORT | {"max_steps": 1, "lora_dropout": 0}
    for batch, parts in ((14, 1), (2, 7), (1, 14)):
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": parts}
        found = Lab(tmp_path / str(batch), tiny_model, tokens).run(arguments | sizes)
        assert found["train_loss"] == pytest.approx(total / count, rel=1e-6)


def test_the_template_goes_along(tmp_path: Path, tiny_model: Path) -> None:
    tokens = write_eager(tmp_path / "tokens", ROWS, HELD_OUT, tiny_model)
    (tokens / "chat_template.jinja").write_text("{{ 'ours' }}")
    for train_type in ("lora", "full"):
        lab = Lab(tmp_path / train_type, tiny_model, tokens)
        lab.run(SHORT | {"max_steps": 2, "train_type": train_type, "load_best_model_at_end": True})
        assert (lab.out / "chat_template.jinja").read_text() == "{{ 'ours' }}"
        assert (lab.attachments / "checkpoint-2" / "chat_template.jinja").read_text() == "{{ 'ours' }}"
    assert "ours" not in (tiny_model / "chat_template.jinja").read_text()


def test_epochs_of_a_stream_are_passes_over_its_data(tmp_path: Path, tiny_model: Path) -> None:
    lab = Lab(tmp_path / "lab", tiny_model, write_stream(tmp_path / "tokens", ROWS))
    metrics = lab.run(SHORT | {"max_steps": 8, "logging_steps": 1})
    lines = [json.loads(line) for line in (lab.attachments / "logging.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "loss" in line] == [0, 0, 0, 1, 1, 1, 1, 2]
    assert metrics["num_train_epochs"] == 2
    assert not metrics.keys() & {"num_rows", "num_tokens", "eval_loss"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lazy", "stream", "packed stream"])
def test_a_process_that_loads_rows_changes_nothing(tmp_path: Path, tiny_model: Path, kind: str) -> None:
    """It reads ahead of what is trained on; a resume goes on after the last row that was trained on."""
    tokens = make(kind, tmp_path / "tokens", tiny_model)
    whole, cut = Lab(tmp_path / "whole", tiny_model, tokens), Lab(tmp_path / "cut", tiny_model, tokens)
    undisturbed = whole.run(SHORT)
    with pytest.raises(PowerCut):
        cut.run(SHORT | {"dataloader_num_workers": 1}, Recorder(cut=4.5))
    assert cut.run(SHORT | {"dataloader_num_workers": 1}) == undisturbed
    assert digests(cut.out) == digests(whole.out)


def test_a_stream_goes_on_from_a_given_checkpoint(tmp_path: Path, tiny_model: Path) -> None:
    tokens = write_stream(tmp_path / "tokens", ROWS)
    whole, more = Lab(tmp_path / "whole", tiny_model, tokens), Lab(tmp_path / "more", tiny_model, tokens)
    whole.run(SHORT)
    more.inputs["checkpoint"] = whole.attachments / "checkpoint-4"
    more.run(SHORT)
    assert digests(more.out) == digests(whole.out)
    (whole.attachments / "checkpoint-4" / "place.json").unlink()
    other = Lab(tmp_path / "other", tiny_model, tokens)
    other.inputs["checkpoint"] = whole.attachments / "checkpoint-4"
    with pytest.raises(ModelError, match=r"checkpoint-4 has no place.json: it was not trained with `--streaming`"):
        other.run(SHORT)


REFUSED: list[tuple[str, dict[str, Any], type[UserError], str]] = [
    ("stream", {"max_steps": -1}, ArgumentsError, "`--streaming` does not know how many rows there are: add `--max_st"),
    ("stream", {"dataloader_num_workers": 2}, ArgumentsError, "`--dataloader_num_workers 2`: a stream is read by one"),
    (
        "stream",
        {"train_sampling_strategy": "group_by_length"},
        ArgumentsError,
        "`--train_sampling_strategy group_by_length` needs every row's length, `--streaming` knows none: drop one",
    ),
    (
        "lazy",
        {"train_sampling_strategy": "group_by_length"},
        ArgumentsError,
        "group_by_length` needs every row's length, `--lazy_tokenize` knows none",
    ),
    ("neither", {}, DataError, "the tokens have no train.arrow"),
]


@pytest.mark.parametrize(("kind", "arguments", "error", "message"), REFUSED)
def test_refused_before_anything_is_loaded(
    tmp_path: Path, kind: str, arguments: dict[str, Any], error: type[UserError], message: str
) -> None:
    tokens = make(kind, tmp_path / "tokens", tmp_path) if kind != "neither" else tmp_path
    with pytest.raises(error, match=message):
        check_feed(TrainArguments(**SHORT | arguments), tokens)


def test_every_file_is_read(tmp_path: Path, tiny_model: Path) -> None:
    """What these artifacts hold enters the key of a training, and is checked out for it."""
    for kind in ("packed", "lazy", "stream"):
        folder = make(kind, tmp_path / kind, tiny_model)
        read = {path for glob in TOKEN_FILES for path in folder.glob(glob.replace("**", "**/*")) if path.is_file()}
        assert read == {path for path in folder.rglob("*") if path.is_file()}


def test_one_row_over_several_gpus(tmp_path: Path) -> None:
    """Where there are none; nothing is loaded: there is no model."""
    from stages.errors import MissingPackage

    lab = Lab(tmp_path, tmp_path / "no-model", tmp_path / "no-tokens")
    with pytest.raises(MissingPackage, match=r"`--sequence_parallel_size 2` shares each row among 2 GPUs, and this"):
        lab.run(SHORT | {"sequence_parallel_size": 2, "use_cpu": True})
