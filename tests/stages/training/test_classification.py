"""A classifier against a training that is written out here, and what comes of it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import MergeArguments, TrainArguments
from stages.context import Context
from stages.errors import ArgumentsError, DataError, ModelError
from stages.merge import merge
from stages.serving.loading import load_model
from stages.training.class_rows import collate_classes
from stages.training.loading import load_skeleton
from tests.stages.training.lab import SHORT, Lab, cut_off_and_whole
from tests.stages.training.tokens import write_arrow
from tests.stages.training.tuners.methods import written_out_losses

VOCABULARY, CLASSES = 384, 3
PLAIN: dict[str, Any] = SHORT | {
    "num_labels": CLASSES,
    "max_steps": 4,
    "save_steps": 4,
    "logging_steps": 1,
    "weight_decay": 0.0,
}
STEADY = PLAIN | {"lora_dropout": 0.0}


def make_rows(count: int, seed: int = 0) -> list[tuple[list[int], int]]:
    """A row of random tokens is of the class whose token stands in it."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        label = generator.randrange(CLASSES)
        ids = [generator.randrange(10, 300) for _ in range(generator.randint(3, 14))]
        ids[generator.randrange(len(ids))] = 300 + label
        rows.append((ids, label))
    return rows


def write_rows(path: Path, rows: list[tuple[list[int], int]], rows_a_batch: int = 5) -> None:
    import pyarrow as pa

    ids = pa.array([ids for ids, _ in rows], pa.list_(pa.int32()))
    table = pa.table({"input_ids": ids, "label": pa.array([label for _, label in rows], pa.int64())})
    with pa.ipc.new_stream(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=rows_a_batch)


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes") / "tokens"
    folder.mkdir()
    write_rows(folder / "train.arrow", make_rows(12))
    write_rows(folder / "validation.arrow", make_rows(5, seed=1))
    return folder


@pytest.fixture
def lab(tmp_path: Path, tiny_model: Path, tokens: Path) -> Lab:
    return Lab(tmp_path, tiny_model, tokens)


def open_classifier(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()


def untrained(folder: Path) -> Any:
    """The base with the head that the stage starts with."""
    from transformers import set_seed

    set_seed(42)
    return open_classifier(folder, num_labels=CLASSES)


def logits_of(model: Any, rows: list[list[int]]) -> Any:
    """One row at a time."""
    import torch

    with torch.no_grad():
        return torch.cat([model.eval()(torch.tensor([ids])).logits for ids in rows])


def logged(lab: Lab, name: str) -> list[float]:
    lines = [json.loads(line) for line in (lab.attachments / "logging.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def written_out(model: Any, rows: list[tuple[list[int], int]], arguments: Mapping[str, Any]) -> list[float]:
    """The losses of AdamW on the mean cross entropy of the rows of each step, one row at a time."""
    import torch

    def loss_of(numbers: Sequence[int]) -> Any:
        chosen = [rows[number] for number in numbers]
        logits = torch.cat([model(torch.tensor([ids])).logits for ids, _ in chosen])
        return torch.nn.functional.cross_entropy(logits, torch.tensor([label for _, label in chosen]))

    return written_out_losses(model, len(rows), arguments, loss_of)


def test_lora_and_head_train_as_written_out(lab: Lab) -> None:
    import torch
    from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model

    metrics = lab.run(STEADY)
    rows, held_out = make_rows(12), make_rows(5, seed=1)
    targets = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    config = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=32, target_modules=targets)
    model = get_peft_model(untrained(lab.inputs["model"]), config)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if ".lora_" not in name} == {
        "base_model.model.score.modules_to_save.default.weight"
    }
    assert metrics["num_trainable_parameters"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert logged(lab, "loss") == pytest.approx(written_out(model, rows, STEADY), abs=1e-5)

    adapted = PeftModel.from_pretrained(open_classifier(lab.inputs["model"], num_labels=CLASSES), lab.out)
    logits = logits_of(adapted, [ids for ids, _ in held_out])
    torch.testing.assert_close(logits, logits_of(model, [ids for ids, _ in held_out]), atol=1e-4, rtol=1e-4)
    labels = torch.tensor([label for _, label in held_out])
    assert metrics["eval_acc"] == pytest.approx(float((logits.argmax(-1) == labels).float().mean()))
    assert metrics["eval_loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), abs=1e-5)

    adapter = shutil.copytree(lab.out, lab.folder / "adapter")
    described = json.loads((adapter / "adapter_config.json").read_text())
    assert described["task_type"] == "SEQ_CLS"
    described["base_model_name_or_path"] = str(lab.inputs["model"])  # as the output folder has it
    (adapter / "adapter_config.json").write_text(json.dumps(described))
    opened = AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=CLASSES)
    torch.testing.assert_close(logits_of(opened, [ids for ids, _ in held_out]), logits)

    merged = merge_into(lab, lab.out)
    torch.testing.assert_close(logits_of(open_classifier(merged), [i for i, _ in held_out]), logits, atol=1e-4, rtol=0)
    config = json.loads((merged / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert config["pad_token_id"] == 0


def merge_into(lab: Lab, adapter: Path, **arguments: Any) -> Path:
    out = lab.folder / "merged"
    out.mkdir()
    inputs = {"model": lab.inputs["model"], "adapter": adapter}
    merge(MergeArguments(**arguments), inputs, out, Context(lab.folder / "m", lab.folder / "m"))
    return out


def test_full_trains_as_written_out_and_opens_as_a_classifier(lab: Lab) -> None:
    import torch
    from safetensors import safe_open
    from transformers import AutoTokenizer

    arguments = PLAIN | {"train_type": "full", "learning_rate": 1e-3}
    metrics = lab.run(arguments)
    model = untrained(lab.inputs["model"])
    assert logged(lab, "loss") == pytest.approx(written_out(model, make_rows(12), arguments), abs=1e-5)
    assert metrics["num_trainable_parameters"] == metrics["num_parameters"]
    rows = [ids for ids, _ in make_rows(5, seed=1)]
    tuned = open_classifier(lab.out)
    torch.testing.assert_close(logits_of(tuned, rows), logits_of(model, rows), atol=1e-4, rtol=1e-4)
    assert (tuned.config.num_labels, tuned.config.problem_type) == (CLASSES, "single_label_classification")
    assert AutoTokenizer.from_pretrained(lab.out).pad_token_id == tuned.config.pad_token_id
    with safe_open(lab.out / "model.safetensors", "pt") as file:
        assert "score.weight" in file.keys()  # noqa: SIM118 - safe_open is no mapping
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    for open_model in (load_model, load_skeleton):  # with a head that writes, which it does not have
        with pytest.raises(ModelError, match="the model is a classifier"):
            open_model(lab.out)


def test_a_batch_gives_what_its_rows_give_one_by_one(lab: Lab) -> None:
    import torch

    model = untrained(lab.inputs["model"])
    rows = [{"input_ids": ids, "label": label} for ids, label in make_rows(6)]
    batch = collate_classes(rows, model.config.pad_token_id)
    assert batch["attention_mask"].sum(1).tolist() == [len(row["input_ids"]) for row in rows]
    assert batch["labels"].tolist() == [row["label"] for row in rows]
    with torch.no_grad():
        together = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(together, logits_of(model, [row["input_ids"] for row in rows]), atol=1e-6, rtol=1e-5)
    wrong = collate_classes(rows, padding=7)  # another id than the model's: the class is read off the padding
    with torch.no_grad():
        assert (model(wrong["input_ids"], attention_mask=wrong["attention_mask"]).logits - together).abs().max() > 1e-4


@pytest.mark.slow
def test_accuracy_rises(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    write_rows(folder / "train.arrow", make_rows(48))
    write_rows(folder / "validation.arrow", make_rows(30, seed=1))
    lab.inputs["tokens"] = folder
    wanted = {"max_steps": 60, "save_steps": 20, "load_best_model_at_end": True, "metric_for_best_model": "acc"}
    metrics = lab.run(STEADY | wanted | {"per_device_train_batch_size": 4, "learning_rate": 3e-3, "logging_steps": 20})
    accuracies = logged(lab, "eval_acc")
    assert metrics["best_metric"] == max(accuracies)
    assert max(accuracies) > 0.8  # of three classes
    training = logged(lab, "acc")
    assert training[0] < 0.5
    assert training[-1] > 0.95


OTHERS: dict[str, dict[str, Any]] = {
    "adalora": {"train_type": "adalora", "max_steps": 6, "adalora_tinit": 1, "adalora_tfinal": 2},
    "vera": {"train_type": "vera", "learning_rate": 0.1},
    "smoothed": {
        "label_smoothing_factor": 0.1,
        "modules_to_save": ["norm"],
        "train_sampling_strategy": "group_by_length",
    },
}


@pytest.mark.slow
def test_accuracy_is_counted_in_each_nth_step(lab: Lab) -> None:
    lab.run(STEADY)
    each = logged(lab, "acc")
    shutil.rmtree(lab.scratch)
    lab.run(STEADY | {"acc_steps": 2})
    assert logged(lab, "acc") == [each[0], each[2]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")  # peft, of each AdaLoRA folder
@pytest.mark.parametrize("kind", OTHERS)
def test_other_ways_to_train_one(lab: Lab, kind: str) -> None:
    import torch
    from peft import PeftModel

    lab.run(PLAIN | OTHERS[kind])
    base = untrained(lab.inputs["model"])
    rows = [ids for ids, _ in make_rows(5, seed=1)]
    before = logits_of(base, rows)
    logits = logits_of(PeftModel.from_pretrained(base, lab.out), rows)
    assert (logits - before).abs().max() > 1e-3
    merged = open_classifier(merge_into(lab, lab.out, max_shard_size="40KB"))
    torch.testing.assert_close(logits_of(merged, rows), logits, atol=1e-4, rtol=1e-4)


def questions(count: int) -> list[dict[str, Any]]:
    words = ["red", "green", "blue", "sky", "sea", "sum"]
    return [
        {"messages": [{"role": "user", "content": f"what is {' '.join(words[: number % 6 + 1])}"}], "label": number % 3}
        for number in range(count)
    ]


def later(folder: Path, rows: list[dict[str, Any]], *, streams: bool) -> Path:
    """Tokens that are made while training goes on."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stages.data.encode import EncoderSettings

    folder.mkdir()
    (folder / "encoder.json").write_text(EncoderSettings(max_length=128, num_labels=CLASSES).to_json())
    if not streams:
        pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
        pq.write_table(pa.Table.from_pylist([*rows[:2], rows[2] | {"label": None}]), folder / "validation.parquet")
        return folder
    (folder / "files").mkdir()
    (folder / "files" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    part = {"label": "rows.jsonl", "file": "files/rows.jsonl", "rows": len(rows)}
    (folder / "stream.json").write_text(json.dumps({"sources": [{"parts": [part]}], "seed": 42}))
    return folder


@pytest.mark.slow
def test_rows_that_are_encoded_while_training_goes_on(lab: Lab, tmp_path: Path) -> None:
    from stages.data.encode import EncoderSettings, open_encoder

    rows = questions(12)
    encoder = open_encoder(lab.inputs["model"], EncoderSettings(max_length=128, num_labels=CLASSES))
    eager = tmp_path / "eager"
    eager.mkdir()
    encoded = [encoder.encode_row(row) for row in rows]
    write_rows(eager / "train.arrow", [(one.input_ids.tolist(), one.label) for one in encoded])  # type: ignore[union-attr, misc]
    losses = {}
    for kind, folder in (("eager", eager), ("lazy", later(tmp_path / "lazy", rows, streams=False))):
        lab.inputs["tokens"] = folder
        shutil.rmtree(lab.scratch, ignore_errors=True)
        metrics = lab.run(PLAIN)
        losses[kind] = logged(lab, "loss")
    assert losses["eager"] == losses["lazy"]
    assert metrics["eval_acc"] in (0.0, 0.5, 1.0)  # the row without a class counts for nothing

    lab.inputs["tokens"] = later(tmp_path / "stream", rows, streams=True)
    shutil.rmtree(lab.scratch)
    lab.run(PLAIN)
    assert len(logged(lab, "loss")) == 4
    lab.inputs["tokens"] = later(tmp_path / "wrong", [rows[0] | {"label": 3}], streams=True)
    shutil.rmtree(lab.scratch)
    with pytest.raises(DataError, match="stream row 1: its label is 3, and `--num_labels 3` knows 0 to 2"):
        lab.run(PLAIN)


def test_a_run_that_is_cut_off_ends_in_the_same_bytes(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    arguments = SHORT | {"num_labels": CLASSES}
    lora = arguments | {"lora_dropout": 0.2}
    lab, whole, metrics = cut_off_and_whole(tmp_path / "lora", tiny_model, tokens, lora)
    assert logged(lab, "acc") == logged(whole, "acc")
    assert "eval_acc" in metrics
    full = arguments | {"train_type": "full", "learning_rate": 1e-3}
    cut_off_and_whole(tmp_path / "full", tiny_model, tokens, full, cut="end")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_labels": 1}, "`--num_labels 1` would be a regression"),
    ({"train_type": "reft"}, "`--train_type reft` trains models that write"),
    ({"train_type": "full", "lisa_activated_layers": 1}, "`--lisa_activated_layers 1` trains models that write"),
    ({"loss_type": "loss_scale"}, "`--loss_type loss_scale` is a loss of answers"),
    ({"target_modules": ["q_proj", "score"]}, "`--num_labels` trains the head in full"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_a_classifier_cannot_have(lab: Lab, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        lab.run(PLAIN | arguments)
    assert str(caught.value).startswith(message)


def test_tokens_of_another_kind_are_refused(lab: Lab, tmp_path: Path) -> None:
    lab.inputs["tokens"] = tmp_path / "other"
    lab.inputs["tokens"].mkdir()
    write_rows(tmp_path / "other" / "train.arrow", [([5, 6], 2), ([7], 0)])
    with pytest.raises(DataError, match=r"train.arrow row 1: its label is 2, and `--num_labels 2` knows 0 to 1"):
        lab.run(PLAIN | {"num_labels": 2})
    with pytest.raises(DataError, match="has the columns input_ids, label; labels is needed"):
        lab.run({name: value for name, value in PLAIN.items() if name != "num_labels"})
    write_arrow(tmp_path / "other" / "train.arrow", {"input_ids": [[1, 2]], "labels": [[1, 2]]})
    with pytest.raises(DataError, match="holds answers to learn, and no classes: tokenize with `--num_labels`"):
        lab.run(PLAIN)


def change(folder: Path, out: Path, drop: tuple[str, ...] = (), **values: Any) -> Path:
    """A copy of a model with another config.json, without special tokens of its tokenizer."""
    shutil.copytree(folder, out)
    for name, changed in (("config.json", values), ("tokenizer_config.json", {})):
        text = json.loads((out / name).read_text())
        kept = {key: value for key, value in text.items() if key not in drop}
        (out / name).write_text(json.dumps(kept | changed))
    return out


SPECIAL = ("pad_token", "eos_token", "pad_token_id", "eos_token_id")
MODELS: list[tuple[tuple[str, ...], dict[str, Any], str]] = [
    (SPECIAL, {"eos_token_id": None}, "the model has no token to pad rows with"),
    ((), {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "the model is quantized, and a classifier is"),
    ((), {"architectures": ["LlamaForSequenceClassification"]}, "the model tells 2 classes apart: `--num_labels 3`"),
]


@pytest.mark.parametrize(("drop", "values", "message"), MODELS)
def test_a_model_that_cannot_be_one(
    lab: Lab, tmp_path: Path, drop: tuple[str, ...], values: dict[str, Any], message: str
) -> None:
    lab.inputs["model"] = change(lab.inputs["model"], tmp_path / "changed", drop, **values)
    with pytest.raises(ModelError) as caught:
        lab.run(PLAIN)
    assert str(caught.value).startswith(message)


def test_a_checkpoint_of_a_model_that_writes_is_refused(lab: Lab, tmp_path: Path) -> None:
    checkpoint = change(lab.inputs["model"], tmp_path / "checkpoint-2")
    (checkpoint / "trainer_state.json").write_text("{}")
    with pytest.raises(ModelError, match="the checkpoint checkpoint-2 is of a model that writes"):
        load_skeleton(checkpoint, CLASSES)


def test_rows_are_padded_as_the_tokenizer_pads(tiny_model: Path, tmp_path: Path) -> None:
    cases: list[tuple[tuple[str, ...], dict[str, Any], int]] = [
        ((), {"pad_token_id": 5}, 0),  # the tokenizer's pad_token, <|endoftext|>, goes before the model's
        (("pad_token", "pad_token_id"), {"eos_token_id": [2, 1]}, 2),
    ]
    for number, (drop, values, expected) in enumerate(cases):
        folder = change(tiny_model, tmp_path / str(number), drop, **values)
        assert load_skeleton(folder, CLASSES).config.pad_token_id == expected


def test_the_default_is_no_classifier() -> None:
    assert TrainArguments().num_labels is None
    assert "num_labels" not in TrainArguments().key_fields()
