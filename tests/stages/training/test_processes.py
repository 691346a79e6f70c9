"""Two processes train as one does that takes twice as many rows at a time: the same losses, the same weights."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import TrainArguments
from stages.context import Context
from stages.errors import ArgumentsError, DataError, Interrupted, MissingPackage, StageFailed
from stages.train import prepare
from stages.training.dealing import EvenSampler
from stages.training.launch import LOG, Processes, event_file, torchrun, variables
from stages.training.parallel import check_parallel
from stages.training.worker import Voice
from tests.stages.test_train import write_tokens
from tests.stages.training.lab import SHORT, Lab, Recorder, digests
from tests.stages.training.later import questions, write_lazy, write_stream
from tests.stages.training.reference import losses
from tests.stages.training.test_classification import make_rows, write_rows
from tests.stages.training.test_plugins import write_plugin
from tests.stages.training.tokens import write_arrow

LONG = SHORT | {"logging_steps": 1, "lora_dropout": 0.2, "max_steps": 9, "gradient_accumulation_steps": 1}
"""Dropout differs between processes and steps: a run that is resumed must have the random state of both."""
STEADY = SHORT | {"logging_steps": 1, "max_steps": 7, "save_steps": 3}
"""Nothing is random after the start. Of 13 rows, 8 a step, the last 3 steps of 7 are not full."""
FULL = {"train_type": "full", "learning_rate": 1e-3}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "full, by length": ("rows", FULL | {"train_sampling_strategy": "group_by_length", "gradient_checkpointing": True}),
    "drop last": ("rows", {"dataloader_drop_last": True, "data_seed": 5}),
    "one after the other": ("rows", {"train_sampling_strategy": "sequential", "gradient_accumulation_steps": 1}),
    "packs": ("packs", {}),
    "weights": ("weights", {"label_smoothing_factor": 0.1}),
    "lazy": ("lazy", {}),
    "stream": ("stream", {}),
    "lisa": ("rows", FULL | {"lisa_activated_layers": 1, "lisa_step_interval": 2, "gradient_checkpointing": True}),
    "adalora": ("rows", {"train_type": "adalora", "adalora_tinit": 1, "adalora_tfinal": 2, "adalora_deltaT": 2,
                         "adalora_init_r": 6, "adalora_target_r": 2}),
    "galore": ("rows", FULL | {"use_galore": True, "galore_rank": 8, "galore_update_proj_gap": 10}),
    "llamapro": ("rows", {"train_type": "llamapro", "llamapro_num_new_blocks": 2, "learning_rate": 1e-3}),
    "plugins": ("rows", {"optimizer": "plain", "loss_type": "mean_focal", "learning_rate": 0.2,
                         "custom_register_path": ["local::plugins"]}),
    "classes": ("classes", {"num_labels": 3}),
}  # fmt: skip


FSDP = {"fsdp": "true"}
SHARED = {"lora shared": {"gradient_checkpointing": True}, "full shared": FULL}
"""Each process has a half of the weights."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens of each kind."""
    folder = tmp_path_factory.mktemp("data")
    write_tokens(folder / "rows", train=13, validation=5)
    write_tokens(folder / "packs", train=13, validation=5)
    packs = [[0, 1], [2, 3, 4], [5], [6, 7], [8, 9, 10, 11], [12]]
    write_arrow(folder / "packs" / "train_packs.arrow", {"rows": packs})
    generator = random.Random(1)
    (folder / "weights").mkdir()
    ids = [[generator.randrange(384) for _ in range(generator.randint(4, 20))] for _ in range(13)]
    scales = [[float(generator.choice([0, 1, 2.5])) for _ in row] for row in ids]
    columns = {"input_ids": ids, "labels": [[-100, *row[1:]] for row in ids], "loss_scale": scales}
    write_arrow(folder / "weights" / "train.arrow", columns)
    write_lazy(folder / "lazy", questions(13), questions(3))
    write_stream(folder / "stream", questions(30))
    write_plugin(folder / "plugins")
    (folder / "classes").mkdir()
    write_rows(folder / "classes" / "train.arrow", make_rows(13))
    write_rows(folder / "classes" / "validation.arrow", make_rows(5, seed=1))
    return folder


def steady(more: dict[str, Any]) -> dict[str, Any]:
    """Without dropout, where there is any."""
    has_dropout = more.get("train_type", "lora") in ("lora", "adalora")
    return STEADY | ({"lora_dropout": 0} if has_dropout else {}) | more


def as_one(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same global batches in one process."""
    return arguments | {"per_device_train_batch_size": 2 * arguments["per_device_train_batch_size"]}


def weights_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    (path,) = folder.glob("*.safetensors")
    tensors: dict[str, Any] = load_file(path)
    return tensors


def assert_same(one: Lab, both: Lab) -> None:
    """Losses within 1e-5, weights within what rounding makes of that in a few steps of Adam."""
    assert losses(both) == pytest.approx(losses(one), abs=1e-5)
    here, there = weights_of(one.out), weights_of(both.out)
    assert here.keys() == there.keys()
    for name, tensor in here.items():
        assert not tensor.numel() or (tensor - there[name]).abs().max() < 1e-4, name


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, data: Path) -> Path:
    """All ways, by two processes."""
    folder = tmp_path_factory.mktemp("together")
    jobs: dict[str, Any] = {
        name: {"model": str(tiny_model), "tokens": str(data / kind), "arguments": steady(more)}
        for name, (kind, more) in {**WAYS, "dropout": ("rows", LONG)}.items()
    }
    jobs["stream cut"] = jobs["stream"] | {"cut": 4}
    # Last, for accelerate does not forget FSDP.
    for name, more in SHARED.items():
        jobs[name] = {"model": str(tiny_model), "tokens": str(data / "rows"), "arguments": steady(more) | FSDP}
    jobs["lora shared cut"] = jobs["lora shared"] | {"cut": 4}
    for job in jobs.values():
        job["plugins"] = str(data / "plugins")
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = torchrun(folder, 2)
    at = command.index("-m")
    command[at : at + 2] = [str(Path(__file__).with_name("together.py"))]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with (folder / "log").open("w") as log, subprocess.Popen(command, env=variables(2), stdout=log, **pipes) as run:
        assert run.wait(300) == 0, (folder / "log").read_text()[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("way", [*WAYS, *SHARED])
def test_two_processes_are_as_one(tmp_path: Path, together: Path, tiny_model: Path, data: Path, way: str) -> None:
    kind, more = WAYS[way] if way in WAYS else ("rows", SHARED[way])
    one = Lab(tmp_path, tiny_model, data / kind)
    one.inputs["plugins"] = data / "plugins"
    metrics = one.run(as_one(steady(more)))
    both = Lab(together / way, tiny_model, data / kind)
    both.out = both.folder / "out"
    assert_same(one, both)
    assert json.loads((together / way / "metrics.json").read_text()) == pytest.approx(metrics, abs=1e-5)


@pytest.mark.parametrize(
    ("given", "flag", "number"), [("", None, 1), ("3", None, 3), ("3", 2, 2), ("3", 1, 1), ("1", None, 1)]
)
def test_the_flag_goes_before_the_variable(
    monkeypatch: pytest.MonkeyPatch, given: str, flag: int | None, number: int
) -> None:
    monkeypatch.setenv("NPROC_PER_NODE", given)
    arguments = prepare(TrainArguments(**({} if flag is None else {"nproc_per_node": flag}))).arguments
    assert arguments.nproc_per_node == number
    assert prepare(arguments).arguments == arguments
    assert arguments.key_fields() == TrainArguments().key_fields() | ({"nproc_per_node": number} if number > 1 else {})


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("NPROC_PER_NODE", "many", "NPROC_PER_NODE=many is no number of processes: give `--nproc_per_node 2`"),
        ("NPROC_PER_NODE", "0", "NPROC_PER_NODE=0 is no number of processes: give `--nproc_per_node 2`"),
        ("NNODES", "2", "NNODES=2: training is for one machine; unset it, and give `--nproc_per_node`"),
    ],
)
def test_variables_that_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ArgumentsError) as caught:
        prepare(TrainArguments())
    assert str(caught.value) == line


@pytest.mark.slow
@pytest.mark.parametrize("way", ["stream", "lora shared"])
def test_cut_off_they_end_in_the_same_bytes(together: Path, way: str) -> None:
    """The last process has read a stream the farthest; each has an optimizer for its own half of the weights."""
    assert digests(together / f"{way} cut" / "out") == digests(together / way / "out")


PARENT = """
import sys, time
from pathlib import Path
from stages.arguments import TrainArguments
from stages.context import Context
from stages.train import train

folder, model, tokens, arguments = *map(Path, sys.argv[1:4]), sys.argv[4]

def hang(checkpoints):
    (folder / "waiting").touch()
    time.sleep(600)

out = folder / "killed"
out.mkdir()
context = Context(folder / "scratch", folder / "attachments", checkpointed=hang)
train(TrainArguments.model_validate_json(arguments), {"model": model, "tokens": tokens}, out, context)
"""


def workers(folder: Path) -> dict[int, int]:
    """The processes of a run, by their numbers; -1 is torchrun."""
    job, found = str(folder / "scratch" / "processes"), {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if job in (process / "cmdline").read_text():
                number = re.search(r"\0RANK=(\d+)", (process / "environ").read_text())
                found[int(number[1]) if number else -1] = int(process.name)
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_stopped_and_killed_it_ends_in_the_same_bytes(
    tmp_path: Path, tiny_model: Path, data: Path, together: Path
) -> None:
    """Told to stop; then one of the two is killed; then the process that started them; then it comes to its end.

    A pass over the rows has four steps: it stops in the middle of the first one, and is killed in that of the second.
    """
    lab, arguments = Lab(tmp_path, tiny_model, data / "rows"), LONG | {"nproc_per_node": 2}
    reporter, kept = Recorder(), []
    with pytest.raises(Interrupted, match=r"train: stopped at step 3 of 9; the same command goes on"):
        lab.run(arguments, reporter, checkpointed=kept.extend, stop_requested=lambda: bool(kept))
    assert kept[0] == lab.scratch / "checkpoint-2"
    assert reporter.progressed[0] == (0, 1, "starting 2 processes")
    assert not list(lab.out.iterdir())
    assert not workers(tmp_path)

    def kill(checkpoints: Any) -> None:
        os.kill(workers(tmp_path)[1], signal.SIGKILL)

    with pytest.raises(
        StageFailed, match=r"^train failed: process 1 of 2 was ended by signal 9, as when memory runs o"
    ):
        lab.run(arguments, checkpointed=kill)
    assert not workers(tmp_path)

    command = [sys.executable, "-c", PARENT, tmp_path, tiny_model, data / "rows", json.dumps(arguments)]
    with subprocess.Popen(list(map(str, command))) as parent:
        while not (tmp_path / "waiting").exists():
            assert parent.poll() is None
            time.sleep(0.05)
        assert set(workers(tmp_path)) == {-1, 0, 1}
        parent.kill()
    deadline = time.monotonic() + 10
    while workers(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)

    reporter = Recorder()
    metrics = lab.run(arguments, reporter)
    undisturbed = json.loads((together / "dropout" / "metrics.json").read_text())
    for name in ("global_step", "train_loss", "last_loss", "eval_loss"):
        assert metrics[name] == undisturbed[name]
    assert digests(lab.out) == digests(together / "dropout" / "out")
    assert losses(lab) == losses(Lab(together / "dropout", tiny_model, data / "rows"))

    assert reporter.progressed[-1][:2] == (9, 9)
    assert [step for step, values in reporter.measured if "loss" in values][-1] == 9
    assert reporter.images[-1] == lab.attachments / "images" / "train_loss.png"
    names = {path.name for path in (lab.attachments / "checkpoint-8").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"} <= names
    assert not (lab.scratch / "processes").exists()


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    with pytest.raises(MissingPackage) as caught:
        check_parallel(TrainArguments())
    assert str(caught.value) == (
        "`--nproc_per_node 4` gives each process a GPU of its own, and this machine has 2: give `--nproc_per_node 2`, "
        "or `--use_cpu true`"
    )
    check_parallel(TrainArguments(use_cpu=True))


@pytest.mark.slow
def test_what_they_refuse_is_one_line(tmp_path: Path, tiny_model: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    write_arrow(tokens / "train.arrow", {"input_ids": [[1, 2, 9000]], "labels": [[1, 2, 9000]]})
    lab = Lab(tmp_path, tiny_model, tokens)
    with pytest.raises(DataError) as caught:
        lab.run(STEADY | {"nproc_per_node": 2})
    assert str(caught.value).startswith(
        "train.arrow has the token id 9000, the model knows 384 tokens: the rows were ma"
    )


def break_down(error: Exception) -> None:
    raise error


def test_what_breaks_down_first_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When one process is gone, the others fail too: they lose their connection to it."""
    (tmp_path / LOG).touch()
    for index, error in ((1, ZeroDivisionError("no rows")), (0, ConnectionError("reset by peer"))):
        try:
            break_down(error)
        except Exception as raised:
            Voice(tmp_path, index).fail(raised)
    processes = Processes(tmp_path, 2, Context(tmp_path, tmp_path))
    processes.listen()
    with pytest.raises(StageFailed, match=r"^train failed in process 1 of 2: ZeroDivisionError: no rows$"):
        processes.result()
    assert "    raise error" in caplog.text


def test_a_line_that_all_say_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index in (0, 1):
        Voice(tmp_path, index).tell(log="row 3 is left out", level=logging.WARNING)
        Voice(tmp_path, index).tell(log="something else", level=logging.WARNING)
    with event_file(tmp_path, 1).open("a") as file:
        file.write('{"log": "half a line')
    Processes(tmp_path, 2, Context(tmp_path, tmp_path)).listen()
    assert [record.message for record in caplog.records] == ["row 3 is left out", "something else"]


@pytest.mark.parametrize(
    ("rows", "drop_last", "numbers"),
    [
        (8, False, [0, 1, 2, 3, 4, 5, 6, 7]),
        (9, False, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        (9, True, [0, 1, 2, 3, 4, 5, 6, 7]),
        (3, True, []),
    ],
)
def test_steps_are_filled_up_or_dropped(rows: int, drop_last: bool, numbers: list[int]) -> None:
    sampler = EvenSampler(range(rows), rows, 4, drop_last=drop_last)
    assert list(sampler) == numbers
    assert len(sampler) == len(numbers)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"accelerator_config": {"even_batches": False}}, "take even_batches out of `--accelerator_config`"),
        ({"auto_find_batch_size": True}, "drop `--auto_find_batch_size`"),
        ({"train_sampling_strategy": "batch_rebalance"}, "group_by_length does"),
        ({"device_map": "auto"}, "drop `--device_map`"),
        (
            {"train_type": "full", "use_galore": True, "galore_optim_per_parameter": True},
            "after `--galore_optim_per_parameter` has stepped: drop one",
        ),
    ],
)
def test_what_several_processes_would_not_agree_upon(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], line: str
) -> None:
    check_parallel(TrainArguments(**given))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ArgumentsError) as caught:
        check_parallel(TrainArguments(**given))
    assert str(caught.value).startswith("`--nproc_per_node 2`")
    assert str(caught.value).endswith(line)


@pytest.mark.parametrize(("processes", "given", "needed"), [("1", 2, 2), ("2", 1, 1), ("3", 2, 2)])
def test_a_checkpoint_of_another_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: str, given: int, needed: int
) -> None:
    from stages.training.checkpoints import Checkpoints
    from stages.training.start import find_start

    monkeypatch.setenv("WORLD_SIZE", processes)
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    for name in ("optimizer.pt", "scheduler.pt", *(["rng_state.pth"] if given == 1 else [])):
        (checkpoint / name).touch()
    for index in range(given if given > 1 else 0):
        (checkpoint / f"rng_state_{index}.pth").touch()
    (checkpoint / "trainer_state.json").write_text('{"global_step": 2, "max_steps": 6}')
    with pytest.raises(ArgumentsError, match=f"is of {given} .*give `--nproc_per_node {needed}`, or `--resume_only_mo"):
        find_start(TrainArguments(), Checkpoints(tmp_path / "own"), checkpoint, 6)
    monkeypatch.setenv("WORLD_SIZE", str(given))
    assert find_start(TrainArguments(), Checkpoints(tmp_path / "own"), checkpoint, 6).resumes
