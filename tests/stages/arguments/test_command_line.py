"""SWIFT's dialect, and one line for whatever is wrong."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from stages.arguments import SftArguments, SftThenExportArguments, TrainArguments
from stages.arguments.command_line import merge, parse, read_flags
from stages.arguments.recipe import FLOWS, recipe_arguments
from stages.errors import ArgumentsError

BASE = ["--model", "m", "--dataset", "d"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--lora_rank", "16"], {"lora_rank": 16}),
        (["--lora_rank=16"], {"lora_rank": 16}),
        (["--lora-rank", "16"], {"lora_rank": 16}),
        (["--lora-rank=16"], {"lora_rank": 16}),
        (["--target_modules", "q_proj", "v_proj"], {"target_modules": ["q_proj", "v_proj"]}),
        (["--target_modules", "q_proj", "--lora_rank", "4"], {"target_modules": ["q_proj"], "lora_rank": 4}),
        (["--val_dataset", "a.jsonl#5", "hf::org/name:sub#10"], {"val_dataset": ["a.jsonl#5", "hf::org/name:sub#10"]}),
        (["--use_dora"], {"use_dora": True}),
        (["--use_dora", "true"], {"use_dora": True}),
        (["--use_dora", "False"], {"use_dora": False}),
        (["--use_dora=false"], {"use_dora": False}),
        (["--use_dora", "--lora_rank", "4"], {"use_dora": True, "lora_rank": 4}),
        (["--learning_rate", "2e-4"], {"learning_rate": 2e-4}),
        (["--max_steps", "-1"], {"max_steps": -1}),
        (["--max_length", "none"], {"max_length": None}),
        (["--system", "null"], {"system": None}),
        (["--system", "You are terse."], {"system": "You are terse."}),
        (["--system", "-- not a flag"], {"system": "-- not a flag"}),
        (["--system=--looks-like-one"], {"system": "--looks-like-one"}),
        (["--system="], {"system": ""}),
        (["--system", "a\nb"], {"system": "a\nb"}),
        (["--lora_bias_trainable", "none"], {"lora_bias_trainable": "none"}),
        (["--report_to", "none"], {"report_to": ["none"]}),
        (["--lr_scheduler_kwargs", '{"min_lr": 1e-6}'], {"lr_scheduler_kwargs": {"min_lr": 1e-6}}),
        (["--device_map", '{"": 0}'], {"device_map": {"": 0}}),
        (["--device_map", "cuda:1"], {"device_map": "cuda:1"}),
        (["--init_weights", "gaussian"], {"init_lora_weights": "gaussian"}),
        (["--init-weights=false"], {"init_lora_weights": "false"}),
        (["--lora_bias", "all"], {"lora_bias_trainable": "all"}),
        (["--lora_bias", "all", "--lora_bias_trainable", "all"], {"lora_bias_trainable": "all"}),
        (["--warmup_ratio", "0.05"], {"warmup_steps": 0.05}),
        (["--evaluation_strategy", "epoch"], {"eval_strategy": "epoch"}),
        (["--activation_checkpointing", "false"], {"gradient_checkpointing": False}),
    ],
)
def test_dialect(argv: list[str], expected: dict[str, Any]) -> None:
    arguments = parse([*BASE, *argv], SftArguments)
    assert {name: getattr(arguments, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--lora_rnk", "16"], "unknown option --lora_rnk. Did you mean --lora_rank?"),
        (["--lora-rnk", "16"], "unknown option --lora-rnk. Did you mean --lora_rank?"),
        (["--int_weights", "false"], "unknown option --int_weights. Did you mean --init_weights?"),
        (["--xyzzy"], "unknown option --xyzzy. See `martlet sft --help`"),
        (["--do_sample", "true"], "unknown option --do_sample: --temperature 0 takes the likeliest token"),
        (["--lora_rank"], "--lora_rank needs a value"),
        (["--target_modules"], "--target_modules needs a value"),
        (["--tuner_backend"], "--tuner_backend needs a value: choose from peft, unsloth"),
        (["--lora_rank", "8", "16"], "--lora_rank takes one value, not 2: 8 16"),
        (["--lora_rank", "8", "--lora_rank", "16"], "--lora_rank is given twice: 8 and 16"),
        (["--lora_rank", "8", "--lora-rank=8"], "--lora_rank is given twice: 8 and 8"),
        (["--lora_rank", "eight"], "--lora_rank eight: must be a whole number"),
        (["--lora_rank", "8.5"], "--lora_rank 8.5: must be a whole number"),
        (["--lora_rank", "none"], "--lora_rank none: must be a whole number"),
        (["--lora_rank", "0"], "--lora_rank 0: must be at least 1"),
        (["--lora_rank", "-8"], "--lora_rank -8: must be at least 1"),
        (["--lora_rank="], "--lora_rank '': must be a whole number"),
        (["--learning_rate", "fast"], "--learning_rate fast: must be a number"),
        (["--learning_rate", "nan"], "--learning_rate nan: must be a finite number"),
        (["--learning_rate", "0"], "--learning_rate 0: must be above 0"),
        (["--weight_decay", "-1e-5"], "--weight_decay -1e-5: must be at least 0"),
        (["--lora_dropout", "1.5"], "--lora_dropout 1.5: must be at most 1"),
        (["--adam_beta1", "1"], "--adam_beta1 1: must be below 1"),
        (["--use_dora", "maybe"], "--use_dora maybe: must be true or false"),
        (
            ["--truncation_strategy", "lefty"],
            "--truncation_strategy lefty: choose from delete, left. Did you mean left?",
        ),
        (
            ["--report_to", "wandb", "tensorbord"],
            "--report_to tensorbord: choose from tensorboard, wandb, swanlab, azure_ml, clearml, codecarbon, comet_ml, "
            "dagshub, dvclive, flyte, kubeflow, mlflow, neptune, trackio, all, none. Did you mean tensorboard?",
        ),
        (["--torch_dtype", "int4"], "--torch_dtype int4: choose from float16, bfloat16, float32"),
        (
            ["--optim", "adamw_torchh"],
            "--optim adamw_torchh: choose from 41 values, which `--help` lists. Did you mean adamw_torch?",
        ),
        (
            ["--init_weights", "olora"],
            "--init_lora_weights olora: choose from true, false, gaussian, pissa, pissa_niter_N",
        ),
        (
            ["--lora_bias", "all", "--lora_bias_trainable", "none"],
            "`--lora_bias all` and `--lora_bias_trainable none` are one parameter: give it once",
        ),
        (
            ["--lr_scheduler_kwargs", "{min_lr}"],
            "--lr_scheduler_kwargs {min_lr}: not JSON (Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1))",
        ),
        (
            ["--lr_scheduler_kwargs", "[1]"],
            '--lr_scheduler_kwargs 1: must be a JSON object such as {"min_lr": 1e-6}, or the path of a JSON file',
        ),
        (
            ["--device_map", "gpu"],
            "--device_map gpu: neither JSON nor the path of a JSON file; give auto, cpu, cuda, cuda:N, a JSON object "
            "or the path of a JSON file",
        ),
        (
            ["--device_map", "{0}"],
            "--device_map {0}: not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); "
            "give auto, cpu, cuda, cuda:N, a JSON object or the path of a JSON file",
        ),
        (
            ["--target_regex", "("],
            "--target_regex (: not a regular expression: missing ), unterminated subpattern at position 0",
        ),
        (["--lora_rank", "0", "--lora_alpha", "x"], "--lora_rank 0: must be at least 1 (also wrong: --lora_alpha)"),
    ],
)
def test_bad_input_is_one_line(argv: list[str], line: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        parse([*BASE, *argv], SftArguments, prog="martlet sft")
    assert str(caught.value) == line
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "--model is required: give a hub id or a local folder (also wrong: --dataset)"),
        (["--dataset", "d"], "--model is required: give a hub id or a local folder"),
        (["--model=", "--dataset", "d"], "--model '': must not be empty"),
        (
            ["--model", "m"],
            "--dataset is required: give a file, a folder or a hub id, such as rows.jsonl or org/name#500",
        ),
        (["m", "--dataset", "d"], "unexpected m: parameters are written --name value"),
        (["-m", "x"], "unexpected -m: parameters are written --name value"),
    ],
)
def test_what_is_missing(argv: list[str], line: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        parse(argv, SftArguments)
    assert str(caught.value) == line


def test_a_long_value_is_cut_in_the_line() -> None:
    with pytest.raises(ArgumentsError) as caught:
        parse([*BASE, "--lora_rank", "9" * 50 + "x" * 500], SftArguments)
    assert len(str(caught.value)) < 120


def test_flags_win_over_a_recipe() -> None:
    base = {"model": "m", "dataset": ["d"], "lora_rank": 4, "lora_alpha": 8}
    arguments = parse(["--lora_rank", "16"], SftArguments, base=base)
    assert (arguments.lora_rank, arguments.lora_alpha) == (16, 8)


def test_a_flag_replaces_another_spelling_in_the_recipe() -> None:
    assert merge({"init_weights": "false", "lora_rank": 4}, {"init_lora_weights": "gaussian"}, SftArguments) == {
        "lora_rank": 4,
        "init_lora_weights": "gaussian",
    }


def test_json_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "kwargs.json"
    path.write_text('{"min_lr": 1e-6}')
    assert parse(["--lr_scheduler_kwargs", str(path)], TrainArguments).lr_scheduler_kwargs == {"min_lr": 1e-6}


def test_flags_are_read_without_being_checked() -> None:
    assert read_flags(["--lora_rank", "x", "--packing", "--max_length", "none"], SftThenExportArguments) == {
        "lora_rank": "x",
        "packing": True,
        "max_length": None,
    }


def test_python_says_the_same_line() -> None:
    with pytest.raises(ValueError, match=r"^--lora_rank 0: must be at least 1$"):
        SftArguments(model="m", dataset=["d"], lora_rank=0)
    with pytest.raises(ValueError, match=r"^unknown option --lora_rnk\. Did you mean --lora_rank\?$"):
        SftArguments(model="m", dataset=["d"], lora_rnk=8)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"^--dataset is required: "):
        SftArguments(model="m", dataset=[])


WORDS = (
    *("", "none", "true", "0", "-1", "1e400", "nan", "-1e-5", "{}", "[]", "{", '{"a": NaN}', "5GB", "x" * 300, "\x00"),
    *("日本", "(", "9" * 30, "0x10", "--", "---x", "=", "..", "/", "sha256:", "1_000", "٣"),
)


@pytest.mark.parametrize("flow", FLOWS)
def test_whatever_is_typed_is_taken_or_refused_in_one_short_line(flow: str) -> None:
    model = recipe_arguments(flow)
    names = [*model.model_fields, *model.aliases()]
    random = Random(flow)
    for _ in range(300):
        argv = [*BASE] if random.random() < 0.9 else []
        for _ in range(random.randint(1, 3)):
            argv += [f"--{random.choice(names)}", *random.choices(WORDS, k=random.randint(0, 2))]
        try:
            parse(argv, model).key_fields()
        except ArgumentsError as error:
            line = str(error)
            assert "\n" not in line, argv
            assert len(line) < 300, argv
