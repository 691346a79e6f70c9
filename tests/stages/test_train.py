"""Training on tiny models: what it leaves, what it refuses, and that a run which was cut off ends in the same bytes."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import TrainArguments
from stages.errors import ArgumentsError, DataError, Interrupted, MissingPackage, ModelError, UserError
from stages.train import STAGE, can_resume, prepare
from tests.stages.training.lab import SHORT, FailsAtTheEnd, Lab, PowerCut, Recorder, digests
from tests.stages.training.later import questions, write_stream
from tests.stages.training.tokens import write_arrow

VOCABULARY = 384


def write_tokens(folder: Path, *, train: int = 12, validation: int = 3) -> Path:
    """Rows of 4 to 20 random tokens, the first few without a label."""
    generator = random.Random(0)
    folder.mkdir(parents=True)
    for name, count in (("train", train), ("validation", validation)):
        ids = [[generator.randrange(VOCABULARY) for _ in range(generator.randint(4, 20))] for _ in range(count)]
        labels = [[-100, -100, *row[2:]] for row in ids]
        if count:
            write_arrow(folder / f"{name}.arrow", {"input_ids": ids, "labels": labels}, rows_a_batch=5)
    return folder


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens")


@pytest.fixture
def lab(tmp_path: Path, tiny_model: Path, tokens: Path) -> Lab:
    return Lab(tmp_path, tiny_model, tokens)


def test_lora_leaves_a_plain_adapter(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    import torch
    from peft import PeftModel
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    reporter = Recorder()
    with caplog.at_level(logging.INFO):
        metrics = lab.run(SHORT | {"report_to": ["tensorboard"], "lora_rank": 4}, reporter)

    assert sorted(path.name for path in lab.out.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((lab.out / "adapter_config.json").read_text())
    linear = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert config["target_modules"] == linear
    assert config["base_model_name_or_path"] == ""
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 32, 0.05)
    with safe_open(lab.out / "adapter_model.safetensors", "pt") as file:
        assert list(file.keys()) == sorted(file.keys())
        assert len(list(file.keys())) == 2 * 7 * 2
    model = AutoModelForCausalLM.from_pretrained(lab.inputs["model"])
    ids = torch.tensor([[5, 6, 7]])
    before = model(ids).logits
    assert (PeftModel.from_pretrained(model, lab.out)(ids).logits - before).abs().max() > 1e-3

    assert metrics["global_step"] == 6
    assert metrics["num_trainable_parameters"] == 4 * 2 * (128 + 96 + 96 + 128 + 3 * 192)
    assert metrics["last_loss"] < metrics["first_loss"]
    assert metrics["eval_loss"] < metrics["first_eval_loss"]
    assert all(isinstance(value, int | float) for value in metrics.values())
    json.dumps(metrics, allow_nan=False)

    lines = [json.loads(line) for line in (lab.attachments / "logging.jsonl").read_text().splitlines()]
    assert [line["global_step/max_steps"] for line in lines if "loss" in line] == ["1/6", "2/6", "4/6", "6/6"]
    assert {"loss", "grad_norm", "learning_rate", "epoch", "percentage"} <= lines[0].keys()
    assert [line["percentage"] for line in lines if "eval_loss" in line] == ["33.33%", "66.67%", "100.00%"]
    assert list((lab.attachments / "runs").glob("events.out.tfevents.*"))
    assert reporter.images[-1] == lab.attachments / "images" / "train_loss.png"
    assert reporter.progressed[-1][:2] == (6, 6)
    assert reporter.progressed[-1][2].startswith("step 6/6 · loss ")
    assert reporter.progressed[-1][2].endswith(" s/step")
    assert [step for step, values in reporter.measured if "loss" in values] == [1, 2, 4, 6]
    assert "12 rows" in caplog.text
    assert "float32 on cpu" in caplog.text


def test_full_leaves_a_plain_model(lab: Lab) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    metrics = lab.run(SHORT | {"train_type": "full", "learning_rate": 1e-3})
    base = lab.inputs["model"]
    assert {path.name for path in lab.out.iterdir()} == {path.name for path in base.iterdir()}
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (base, lab.out))
    assert after.get("use_cache", True) == before.get("use_cache", True)
    assert str(lab.folder) not in (lab.out / "config.json").read_text()
    model = AutoModelForCausalLM.from_pretrained(lab.out)
    assert AutoTokenizer.from_pretrained(lab.out).chat_template
    old = AutoModelForCausalLM.from_pretrained(base)
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), old.parameters(), strict=True)]
    assert all(moved)
    assert metrics["num_trainable_parameters"] == metrics["num_parameters"]
    assert STAGE.output_kind(TrainArguments(train_type="full")) == "model"
    assert STAGE.output_kind(TrainArguments()) == "adapter"


CUT: dict[str, dict[str, Any]] = {
    "lora": {"lora_dropout": 0.2},
    "dora in bfloat16": {"use_dora": True, "torch_dtype": "bfloat16", "lora_dtype": "bfloat16"},
    "full": {"train_type": "full", "learning_rate": 1e-3},
    "modules_to_save": {"modules_to_save": ["lm_head"], "lora_bias_trainable": "all", "neftune_noise_alpha": 5},
    "by length": {"train_sampling_strategy": "group_by_length", "gradient_accumulation_steps": 1, "max_steps": 9},
    "by epoch": {"save_strategy": "epoch", "num_train_epochs": 2, "max_steps": -1},
    "best": {"load_best_model_at_end": True, "learning_rate": 0.5, "lr_scheduler_type": "constant"},
}


@pytest.mark.parametrize("arguments", CUT.values(), ids=CUT.keys())
def test_a_run_that_was_cut_off_ends_in_the_same_bytes(
    tmp_path: Path, tiny_model: Path, tokens: Path, arguments: dict[str, Any]
) -> None:
    """Three epochs of three steps with two parts each, shuffled, cut off in the middle of a step of the second one."""
    arguments = SHORT | {"save_total_limit": 2} | arguments
    whole = Lab(tmp_path / "whole", tiny_model, tokens)
    undisturbed = whole.run(arguments)

    lab = Lab(tmp_path / "cut", tiny_model, tokens)
    with pytest.raises(PowerCut):
        lab.run(arguments, Recorder(cut=5 if arguments["gradient_accumulation_steps"] == 1 else 4.5))
    assert can_resume(lab.scratch)
    half = lab.scratch / "checkpoint-5"  # as a kill while it is written leaves it
    half.mkdir(exist_ok=True)
    (half / "complete").unlink(missing_ok=True)
    (half / "trainer_state.json").write_text("{")
    resumed = lab.run(arguments)

    assert digests(lab.out) == digests(whole.out)
    assert resumed == undisturbed
    losses = [
        [line for line in (run.attachments / "logging.jsonl").read_text().splitlines() if '"loss"' in line]
        for run in (whole, lab)
    ]
    assert losses[0] == losses[1]


def test_cut_off_after_the_last_checkpoint(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    """Seven steps are two epochs and a part: the Trainer itself would go on to an eighth."""
    arguments = SHORT | {"max_steps": 7}
    whole, lab = Lab(tmp_path / "whole", tiny_model, tokens), Lab(tmp_path / "cut", tiny_model, tokens)
    undisturbed = whole.run(arguments)
    with pytest.raises(PowerCut):
        lab.run(arguments, FailsAtTheEnd())
    assert (lab.scratch / "checkpoint-7" / "complete").exists()
    assert lab.run(arguments) == undisturbed
    assert digests(lab.out) == digests(whole.out)


def test_told_to_stop(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    whole, lab = Lab(tmp_path / "whole", tiny_model, tokens), Lab(tmp_path / "cut", tiny_model, tokens)
    undisturbed = whole.run(SHORT)
    reporter = Recorder()
    with pytest.raises(Interrupted, match=r"stopped at step 3 of 6; the same command goes on"):
        lab.run(SHORT, reporter, stop_requested=lambda: reporter.progressed[-1][0] > 2)
    assert (lab.scratch / "checkpoint-3" / "complete").exists()
    assert not list(lab.out.iterdir())
    assert lab.run(SHORT)["eval_loss"] == undisturbed["eval_loss"]
    assert digests(lab.out) == digests(whole.out)


def test_told_to_stop_while_validating(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    whole, lab = Lab(tmp_path / "whole", tiny_model, tokens), Lab(tmp_path / "cut", tiny_model, tokens)
    undisturbed = whole.run(SHORT)
    polls = iter([False] * 4 + [True] * 99)  # four steps; the validation after the fourth is told
    with pytest.raises(Interrupted, match="step 4 of 6"):
        lab.run(SHORT | {"eval_steps": 4}, stop_requested=lambda: next(polls))
    assert can_resume(lab.scratch)
    assert lab.run(SHORT | {"eval_steps": 4})["eval_loss"] == undisturbed["eval_loss"]
    assert digests(lab.out) == digests(whole.out)


CHILD = """
import sys, time
from pathlib import Path
from stages.arguments import TrainArguments
from stages.context import Context, NullReporter
from stages.train import train

folder, model, tokens, wait, arguments = *map(Path, sys.argv[1:4]), float(sys.argv[4]), sys.argv[5]

class Slow(NullReporter):
    def progress(self, done, total, text):
        if done >= wait and total > 1:
            (folder / "waiting").touch()
            time.sleep(600)

out = folder / "out"
for path in (out, folder / "scratch", folder / "attachments"):
    path.mkdir(parents=True, exist_ok=True)
context = Context(folder / "scratch", folder / "attachments", reporter=Slow())
train(TrainArguments.model_validate_json(arguments), {"model": model, "tokens": tokens}, out, context)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "full", "stream"])
def test_killed(tmp_path: Path, tiny_model: Path, tokens: Path, name: str) -> None:
    """SIGKILL in the middle of the fifth step; each try is a process of its own."""
    arguments = json.dumps(SHORT | CUT.get(name, {"lora_dropout": 0.2}))
    if name == "stream":
        tokens = write_stream(tmp_path / "tokens", questions(14))

    def start(folder: Path, wait: float) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", CHILD, folder, tiny_model, tokens, str(wait), arguments]
        return subprocess.Popen(list(map(str, command)))

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole, 1e9).wait() == 0
    child = start(cut, 4.5)
    while not (cut / "waiting").exists():
        assert child.poll() is None
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not list((cut / "out").iterdir())
    assert start(cut, 1e9).wait() == 0
    assert digests(cut / "out") == digests(whole / "out")


def test_checkpoints_are_kept_without_what_could_run_code(lab: Lab) -> None:
    lab.run(SHORT | {"save_total_limit": 2})
    kept = sorted(path.name for path in lab.attachments.glob("checkpoint-*"))
    assert kept == ["checkpoint-4", "checkpoint-6"]
    names = {path.name for path in (lab.attachments / "checkpoint-6").iterdir()}
    assert names == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "trainer_state.json",
    }
    assert digests(lab.attachments / "checkpoint-6").items() >= digests(lab.out).items()


def test_save_only_model(lab: Lab) -> None:
    lab.run(SHORT | {"save_only_model": True})
    names = {path.name for path in (lab.attachments / "checkpoint-6").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "trainer_state.json"}


@pytest.mark.parametrize("train_type", ["lora", "full"])
def test_resume_from_a_given_checkpoint(tmp_path: Path, tiny_model: Path, tokens: Path, train_type: str) -> None:
    arguments = SHORT | {"train_type": train_type, "learning_rate": 1e-3}
    whole, lab = Lab(tmp_path / "whole", tiny_model, tokens), Lab(tmp_path / "more", tiny_model, tokens)
    undisturbed = whole.run(arguments)
    given = whole.attachments / "checkpoint-4"

    pinned = prepare(TrainArguments(**arguments, resume_from_checkpoint=str(given)))
    assert dict(pinned.inputs) == {"checkpoint": given}
    assert str(given) not in pinned.arguments.model_dump_json()
    assert prepare(pinned.arguments).arguments == pinned.arguments

    lab.inputs["checkpoint"] = given
    assert lab.run(arguments)["train_loss"] == undisturbed["train_loss"]
    assert digests(lab.out) == digests(whole.out)

    lab = Lab(tmp_path / "weights", tiny_model, tokens)
    lab.inputs["checkpoint"] = given
    metrics = lab.run(arguments | {"resume_from_checkpoint": "local::checkpoint", "resume_only_model": True})
    assert metrics["global_step"] == 6
    assert metrics["first_loss"] < undisturbed["first_loss"]
    assert digests(lab.out) != digests(whole.out)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tokens: Path) -> Path:
    """What a short training leaves."""
    lab = Lab(tmp_path_factory.mktemp("adapter"), tiny_model, tokens)
    lab.run(SHORT)
    return lab.out


def test_the_best_checkpoint_is_the_result(lab: Lab) -> None:
    arguments = SHORT | {"load_best_model_at_end": True, "learning_rate": 0.5, "lr_scheduler_type": "constant"}
    metrics = lab.run(arguments | {"save_total_limit": 1})
    assert metrics["best_step"] < 6  # such a learning rate ruins the model
    assert metrics["best_metric"] < metrics["eval_loss"]
    best = lab.attachments / f"checkpoint-{metrics['best_step']}"
    assert digests(best).items() >= digests(lab.out).items()


def test_loss_counts_tokens_not_rows_or_batches(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    """However a step's rows are cut into batches, it is the same step; so it is for the validation."""
    adapters = {}
    for batch, parts in ((1, 6), (2, 3), (6, 1)):
        lab = Lab(tmp_path / str(batch), tiny_model, tokens)
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": parts}
        sizes["per_device_eval_batch_size"] = batch
        metrics = lab.run(SHORT | sizes | {"lora_dropout": 0, "max_steps": 3})
        adapters[batch] = metrics
    first = adapters.pop(1)
    for metrics in adapters.values():
        assert metrics["train_loss"] == pytest.approx(first["train_loss"], rel=1e-5)
        assert metrics["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-5)


def test_validation_is_left_out(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    metrics = Lab(tmp_path / "no", tiny_model, tokens).run(SHORT | {"eval_strategy": "no"})
    assert "eval_loss" not in metrics
    nothing = write_tokens(tmp_path / "tokens", validation=0)
    lab = Lab(tmp_path / "none", tiny_model, nothing)
    assert "eval_loss" not in lab.run(SHORT)
    with pytest.raises(ArgumentsError, match="`--load_best_model_at_end` needs a validation, and none takes place"):
        lab.run(SHORT | {"load_best_model_at_end": True})


def test_nothing_is_saved_but_the_result(lab: Lab) -> None:
    metrics = lab.run(SHORT | {"save_strategy": "no", "eval_strategy": "steps", "eval_steps": 3})
    assert metrics["eval_loss"] > 0
    assert not can_resume(lab.scratch)
    assert not list(lab.attachments.glob("checkpoint-*"))


BAD_TOKENS: dict[str, tuple[str, dict[str, list[list[int]]], str]] = {
    "other lengths": ("train", {"input_ids": [[1, 2]], "labels": [[-100]]}, "more or fewer labels than tokens"),
    "another tokenizer": ("train", {"input_ids": [[1, 384]], "labels": [[-100, 384]]}, "token id 384, the model knows"),
    "no rows": ("train", {"input_ids": [], "labels": []}, "train.arrow holds no row"),
    "no labels": ("train", {"input_ids": [[1, 2]]}, "has the columns input_ids; labels is needed"),
    "all held out": (
        "validation",
        {"input_ids": [[1, 2]], "labels": [[-100, 2]]},
        "the tokens have no train.arrow: ev",
    ),
}


@pytest.mark.parametrize(("name", "columns", "message"), BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
def test_tokens_that_cannot_be_trained(
    tmp_path: Path, tiny_model: Path, name: str, columns: dict[str, list[list[int]]], message: str
) -> None:
    (tmp_path / "tokens").mkdir()
    write_arrow(tmp_path / "tokens" / f"{name}.arrow", columns)
    with pytest.raises(DataError, match=message):
        Lab(tmp_path, tiny_model, tmp_path / "tokens").run(SHORT)


def test_tokens_of_an_older_tokenize(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="Parquet files of an older tokenize: run it again"):
        Lab(tmp_path, tiny_model, tmp_path / "tokens").run(SHORT)


BAD_ARGUMENTS: list[tuple[dict[str, Any], type[UserError], str]] = [
    ({"target_modules": ["q_prj"]}, ArgumentsError, "no such module. Did you mean q_proj? It has "),
    ({"target_regex": "nothing.*"}, ArgumentsError, "`--target_regex nothing.*` matches no module. It has "),
    ({"modules_to_save": ["head"]}, ArgumentsError, "`--modules_to_save head`: the model has no such module"),
    (
        {"modules_to_save": ["lm_head"], "target_modules": ["lm_head"]},
        ArgumentsError,
        "`--modules_to_save lm_head` trains it in full and `--target_modules` gives it an adapter",
    ),
    ({"torch_dtype": "float16"}, ArgumentsError, "a CPU cannot train in float16: give `--torch_dtype float32` or"),
    ({"fp16": True}, ArgumentsError, "a CPU cannot train in float16"),
    ({"fp16": True, "bf16": True}, ArgumentsError, "`--fp16` and `--bf16` are two kinds"),
    ({"device_map": "cuda:0"}, MissingPackage, "`--device_map cuda:0` needs a cuda device, and this machine has none"),
    ({"device_map": {"": 1}}, MissingPackage, "`--device_map cuda:1` needs"),
    ({"report_to": ["wandb"]}, MissingPackage, "`--report_to wandb` needs the package wandb"),
    ({"load_best_model_at_end": True, "save_strategy": "epoch", "eval_strategy": "steps"}, ArgumentsError, "strategy"),
    ({"metric_for_best_model": "accuracy"}, ArgumentsError, "`--metric_for_best_model accuracy`: validation measures"),
    ({"train_type": "full", "learning_rate": 1e30}, ArgumentsError, "training broke down: .* Lower `--learning_rate`"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), BAD_ARGUMENTS)
def test_arguments_that_cannot_work(lab: Lab, arguments: dict[str, Any], kind: type[UserError], message: str) -> None:
    with pytest.raises(kind, match=message.replace("?", r"\?")) as caught:
        lab.run(SHORT | arguments)
    assert "\n" not in str(caught.value)
    assert not list(lab.out.iterdir())


def test_a_checkpoint_of_another_kind(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    first = Lab(tmp_path / "first", tiny_model, tokens)
    first.run(SHORT)
    given = first.attachments / "checkpoint-4"
    lab = Lab(tmp_path / "second", tiny_model, tokens)
    lab.inputs["checkpoint"] = given
    with pytest.raises(ModelError, match=r"checkpoint-4 has no config.json: it is not one of a full training"):
        lab.run(SHORT | {"train_type": "full"})
    with pytest.raises(ModelError, match=r"checkpoint-4 is of another adapter: .*lora_A.weight is \(8, 128\)"):
        lab.run(SHORT | {"lora_rank": 4})
    with pytest.raises(ArgumentsError, match="the checkpoint is at step 4 of 4: nothing is left to train"):
        lab.run(SHORT | {"max_steps": 4})
    (given / "optimizer.pt").unlink()
    with pytest.raises(ModelError, match=r"has no optimizer.pt: give `--resume_only_model true`"):
        lab.run(SHORT)


def test_an_adapter_is_where_training_starts(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    first = Lab(tmp_path / "first", tiny_model, tokens)
    before = first.run(SHORT)
    lab = Lab(tmp_path / "second", tiny_model, tokens)
    lab.inputs["adapter"] = first.out
    metrics = lab.run(SHORT)
    assert metrics["global_step"] == 6
    assert metrics["first_loss"] < before["first_loss"]
    assert digests(lab.out) != digests(first.out)
    assert not STAGE.inputs["adapter"].required


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"lora_rank": 4}, ModelError, r"is of another adapter: .*lora_A.weight is \(8, 128\)"),
        ({"lora_alpha": 64}, ModelError, "is of another adapter: its lora_alpha is 32, these arguments make it 64"),
        ({"use_rslora": True}, ModelError, "its use_rslora is False, these arguments make it True"),
        ({"train_type": "full"}, ModelError, "it is not one of a full training"),
    ],
)
def test_an_adapter_of_another_shape_or_scale_is_no_start(
    arguments: dict[str, Any], kind: type[UserError], said: str, lab: Lab, adapter: Path
) -> None:
    lab.inputs["adapter"] = adapter
    with pytest.raises(kind, match=said):
        lab.run(SHORT | arguments)


def test_there_is_one_start(lab: Lab, adapter: Path) -> None:
    lab.inputs |= {"adapter": adapter, "checkpoint": adapter}
    with pytest.raises(ArgumentsError, match="either from the input checkpoint or from the input adapter"):
        lab.run(SHORT)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArgumentsError, match="is not a folder: give a checkpoint-<step>"):
        prepare(TrainArguments(resume_from_checkpoint=str(tmp_path / "nowhere")))
