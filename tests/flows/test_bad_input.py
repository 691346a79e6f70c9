"""One clear line and exit 2, before Prefect starts or a model is loaded, and nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import main
from tests.conftest import write_tiny_model
from tests.flows.conftest import Martlet

MODEL = ["--model", "MODEL"]
DATA = ["--dataset", "rows.jsonl"]
GOOD = [*MODEL, *DATA]


@pytest.fixture
def user(tmp_path: Path, tiny_model: Path, alpaca_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a model, rows and recipes, some of them wrong."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "MODEL").symlink_to(tiny_model)
    (tmp_path / "rows.jsonl").write_bytes(alpaca_file.read_bytes())
    (tmp_path / "unknown-key.yaml").write_text("flow: sft\nmodel: MODEL\ndataset: [rows.jsonl]\nlora_rnk: 4\n")
    (tmp_path / "unknown-flow.yaml").write_text("flow: sfft\nmodel: MODEL\n")
    (tmp_path / "broken.yaml").write_text("flow: [sft\n")
    damaged = tmp_path / "DAMAGED"
    damaged.mkdir()
    for path in tiny_model.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sfft"], "unknown command sfft. Did you mean sft?"),
        (["sft", *GOOD, "--lora_rnk", "8"], "unknown option --lora_rnk. Did you mean --lora_rank?"),
        (["sft", *GOOD, "--lora_rank", "eight"], "--lora_rank"),
        (["sft", *GOOD, "--lora_rank", "0"], "--lora_rank"),
        (["sft", *GOOD, "--train_type", "lara"], "lora"),
        (["sft", *GOOD, "--use_galore", "true"], "--use_galore"),
        (["sft", *DATA], "--model"),
        (["sft", *MODEL], "--dataset"),
        (["sft", *MODEL, "--dataset", "/nowhere/rows.jsonl"], "/nowhere/rows.jsonl"),
        (["sft", "--model", "/nowhere/model", *DATA], "/nowhere/model"),
        (["sft", "--model", "DAMAGED", *DATA], "model.safetensors"),
        (["sft", *GOOD, "--resume_from_checkpoint", "nowhere"], "nowhere"),
        (["run"], "recipe"),
        (["run", "nowhere.yaml"], "nowhere.yaml"),
        (["run", "unknown-key.yaml"], "lora_rnk"),
        (["run", "unknown-flow.yaml"], "sfft"),
        (["run", "broken.yaml"], "broken.yaml"),
        (["plan"], "recipe or a command"),
        (["plan", "sft", *MODEL, "--dataset", "/nowhere/rows.jsonl"], "/nowhere/rows.jsonl"),
        (["export", *MODEL, "--merge_lora", "true"], "--ckpt_dir"),
        (["export", "--ckpt_dir", "nowhere", "--merge_lora", "true"], "nowhere"),
        (["export", *MODEL, "--quant_method", "bnb", "--quant_bits", "3"], "3"),
        (["export", *MODEL, "--quant_bits", "4"], "quant_method"),
        (["export", *MODEL, "--quant_method", "gptq", "--quant_bits", "4"], "--dataset"),
        (["export", *MODEL, "--quant_method", "bnb", "--quant_bits", "4", "--output_dir", "taken"], "taken"),
        (["rlhf", *GOOD], "not supported yet"),
        (["rerun", "merge"], "--run ID or --artifact"),
        (["rerun", "merge", "--run", "latest"], "no run"),
        (["rerun", "mrege", "--run", "latest"], "unknown stage"),
        (["artifacts", "show", "sha256:0123456789"], "sha256:0123456789"),
        (["artifacts", "gc"], "Choose from"),
        (["env", "create", "nonsense"], "nonsense"),
        (["setup", "now"], "now"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_line_and_exit_2(
    words: list[str], said: str, user: Path, capsys: pytest.CaptureFixture[str], own_store: Path
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (user / "output").exists()
    assert list(own_store.glob("actions/*")) == []
    assert "prefect" not in captured.out


def test_the_last_stage_is_checked_before_the_first_one_runs(
    user: Path, capsys: pytest.CaptureFixture[str], own_store: Path
) -> None:
    (user / "recipe.yaml").write_text(
        "flow: sft-then-export\nmodel: MODEL\ndataset: [rows.jsonl]\npush_to_hub: true\nhub_model_id: 'not a name'\n"
    )
    assert main(["run", "recipe.yaml"]) == 2
    assert "not a name" in capsys.readouterr().err
    assert list(own_store.glob("actions/*")) == []


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "template", "said"),
    [
        ("", True, "rows.jsonl"),
        ('{"instruction": "a", "output": "b"}\n{broken\n', True, "rows.jsonl"),
        ('{"colour": "red"}\n', True, "rows.jsonl"),
        (json.dumps({"instruction": "a", "input": "", "output": "b"}) + "\n", False, "chat template"),
    ],
    ids=["empty", "broken", "unknown columns", "no chat template"],
)
def test_what_a_stage_finds_wrong_with_rows_or_model_is_one_line_too(
    rows: str, template: bool, said: str, tmp_path: Path, prefect_environment: dict[str, str]
) -> None:
    model = write_tiny_model(tmp_path / "model")
    if not template:
        for path in model.glob("chat_template*"):
            path.unlink()
        config = json.loads((model / "tokenizer_config.json").read_text())
        config.pop("chat_template", None)
        (model / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "rows.jsonl").write_text(rows * 4 if template is False else rows)
    martlet = Martlet({**prefect_environment, "MARTLET_STORE": str(tmp_path / "store")}, tmp_path)
    words = ["sft", "--model", "model", "--dataset", "rows.jsonl", "--strict", "true", "--split_dataset_ratio", "0"]
    done = martlet(*words, exit_code=2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "output").exists()


def test_a_second_process_in_the_same_store_is_no_error(user: Path, own_store: Path) -> None:
    """Both compute or wait, whichever comes first, and both end well."""
    command = [sys.executable, "-m", "stages", "download", "--model", "MODEL"]
    both = [subprocess.Popen(command, cwd=user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(list(own_store.glob("actions/*.json"))) == 1
