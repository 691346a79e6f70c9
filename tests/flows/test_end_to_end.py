"""The main job on a tiny real model: trained, merged, quantized, evaluated; then all that a user does next."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import alpaca_rows
from tests.flows.conftest import Martlet, api, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.server]

RECIPE = """\
flow: sft-then-export
model: {model}
dataset: [rows.jsonl]
split_dataset_ratio: 0.2
lora_rank: 4
max_steps: 6
save_steps: 2
logging_steps: 1
learning_rate: 1e-3
per_device_train_batch_size: 2
max_length: 128
quant_method: bnb
quant_bits: 4
"""


def by_title(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{s['stage']} {s['label']}".strip(): s for s in record["stages"]}


def statuses(record: dict[str, Any]) -> dict[str, str]:
    return {title: stage["status"] for title, stage in by_title(record).items()}


def write_rows(folder: Path, count: int = 40) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in alpaca_rows(count)))
    return path


@pytest.fixture(scope="module")
def martlet(tmp_path_factory: pytest.TempPathFactory, prefect_environment: dict[str, str], tiny_model: Path) -> Martlet:
    folder = tmp_path_factory.mktemp("user")
    write_rows(folder)
    (folder / "recipe.yaml").write_text(RECIPE.format(model=tiny_model))
    return Martlet({**prefect_environment, "MARTLET_STORE": str(folder / "store")}, folder)


@pytest.fixture(scope="module")
def first(martlet: Martlet) -> dict[str, Any]:
    """The first run of the recipe: everything has to be computed."""
    record: dict[str, Any] = martlet.json("run", "recipe.yaml")
    return record


STAGES = ["download", "preprocess", "tokenize", "train", "merge", "quantize"]
EVALUATIONS = ["evaluate base", "evaluate tuned", "evaluate quantized"]


def test_a_first_run_computes_every_stage(first: dict[str, Any]) -> None:
    assert first["ok"] is True
    assert first["flow"] == "sft-then-export"
    expected = {**dict.fromkeys([*STAGES, *EVALUATIONS], "ran"), "push_to_hub": "skipped"}
    assert statuses(first) == expected
    kinds = [by_title(first)[title]["artifact"]["kind"] for title in [*STAGES, "evaluate tuned"]]
    assert kinds == ["model", "dataset", "tokens", "adapter", "model", "model", "report"]


def test_training_lowers_the_held_out_loss(first: dict[str, Any]) -> None:
    stages = by_title(first)
    assert stages["evaluate tuned"]["metrics"]["eval_loss"] < stages["evaluate base"]["metrics"]["eval_loss"]


def test_the_output_folder_is_laid_out_as_swift_lays_it(first: dict[str, Any]) -> None:
    folder = Path(first["output_dir"])
    assert folder.name.startswith("v0-")
    wanted = ["args.json", "logging.jsonl", "runs", "images", "checkpoint-6", "checkpoint-6-merged"]
    missing = [name for name in [*wanted, "checkpoint-6-bnb-int4"] if not (folder / name).exists()]
    assert missing == []
    saved = json.loads((folder / "args.json").read_text())
    assert (saved["lora_rank"], saved["learning_rate"]) == (4, 1e-3)
    assert json.loads((folder / "checkpoint-6" / "adapter_config.json").read_text())["r"] == 4


def test_merged_and_quantized_models_open_and_generate(first: dict[str, Any]) -> None:
    code = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**chat, max_new_tokens=4, do_sample=False)
    print(out.shape[1] - chat["input_ids"].shape[1])
"""
    folder = Path(first["output_dir"])
    folders = [str(folder / "checkpoint-6-merged"), str(folder / "checkpoint-6-bnb-int4")]
    done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(1 <= int(line) <= 4 for line in done.stdout.split())
    assert len(done.stdout.split()) == 2


def test_an_unchanged_second_run_is_cached(martlet: Martlet, first: dict[str, Any]) -> None:
    second = martlet.json("run", "recipe.yaml")
    expected = {**dict.fromkeys([*STAGES, *EVALUATIONS], "cached"), "push_to_hub": "skipped"}
    assert statuses(second) == expected
    assert [s["artifact"] for s in second["stages"]] == [s["artifact"] for s in first["stages"]]
    assert Path(second["output_dir"]).name.startswith("v1-")


def test_a_new_learning_rate_reruns_training_and_what_follows(martlet: Martlet, first: dict[str, Any]) -> None:
    planned = martlet.json("plan", "recipe.yaml", "--learning_rate", "2e-3")
    done = martlet.json("run", "recipe.yaml", "--learning_rate", "2e-3")
    kept = ["download", "preprocess", "tokenize", "evaluate base"]
    expected = {title: "cached" if title in kept else "ran" for title in [*STAGES, *EVALUATIONS]}
    assert statuses(done) == {**expected, "push_to_hub": "skipped"}
    assert {title: status.replace("run", "ran") for title, status in statuses(planned).items()} == statuses(done)
    assert "learning_rate 1e-3 → 2e-3" in by_title(planned)["train"]["reason"]


def test_an_adapter_trained_beside_few_bits_is_merged_into_floats(martlet: Martlet, first: dict[str, Any]) -> None:
    """QLoRA: the base in 4 bits only while training, then the float base with the adapter; by sft and export too."""
    loads = ["--load_quant_method", "bnb", "--load_quant_bits", "4"]
    done = martlet.json("run", "recipe.yaml", *loads, "--quant_bits", "8")
    expected = {**statuses(first), **dict.fromkeys(["download", "preprocess", "tokenize", "evaluate base"], "cached")}
    assert statuses(done) == expected
    folder = Path(done["output_dir"])
    merged = json.loads((folder / "checkpoint-6-merged" / "config.json").read_text())
    assert "quantization_config" not in merged
    assert json.loads((folder / "checkpoint-6-bnb-int8" / "config.json").read_text())["quantization_config"]
    assert by_title(done)["train"]["artifact"] != by_title(first)["train"]["artifact"]

    own = ["--quant_method", "bnb", "--quant_bits", "4"]
    lines = (martlet.folder / "recipe.yaml").read_text().splitlines()
    recipe = "\n".join(line for line in lines if not line.startswith(("flow:", "quant_")))
    (martlet.folder / "sft.yaml").write_text(f"flow: sft\n{recipe}\n")
    trained = martlet.json("run", "sft.yaml", *own)
    assert (by_title(trained)["train"]["status"], by_title(trained)["train"]["artifact"]) == (
        "cached",
        by_title(done)["train"]["artifact"],
    )
    checkpoint = Path(trained["output_dir"]) / "checkpoint-6"
    exported = martlet.json("export", "--ckpt_dir", str(checkpoint), "--merge_lora", "true", "--output_dir", "floats")
    assert by_title(exported)["merge"]["artifact"] == by_title(done)["merge"]["artifact"]
    code = """
import sys, torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM
ids = torch.tensor([[5, 6, 7, 8]])
ours, theirs = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoPeftModelForCausalLM.from_pretrained(sys.argv[2])
print(float((ours(ids).logits - theirs(ids).logits).abs().max().detach()))
"""
    words = [sys.executable, "-c", code, str(martlet.folder / "floats"), str(checkpoint)]
    opened = subprocess.run(words, capture_output=True, text=True, check=False)
    assert opened.returncode == 0, opened.stderr
    assert float(opened.stdout.split()[-1]) < 1e-4


def test_a_stage_by_itself_gives_the_same_digest(martlet: Martlet, first: dict[str, Any]) -> None:
    stages = by_title(first)
    model, adapter = stages["download"]["artifact"]["digest"], stages["train"]["artifact"]["digest"]
    for source in (model, str(Path(first["output_dir"]) / "base")):
        if source != model:
            martlet("artifacts", "export", model, source)
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "stages",
                "merge",
                "--input",
                f"model={source}",
                "--input",
                f"adapter={adapter}",
                "--json",
            ],
            env={**martlet.environment, "MARTLET_STORE": str(martlet.folder / "store")},
            capture_output=True,
            text=True,
            check=True,
        )
        record = json.loads(done.stdout.splitlines()[-1])
        assert record["artifact"]["digest"] == stages["merge"]["artifact"]["digest"]


def test_a_killed_training_goes_on_and_ends_with_the_same_bytes(martlet: Martlet, first: dict[str, Any]) -> None:
    store = martlet.folder / "second-store"
    other = Martlet({**martlet.environment, "MARTLET_STORE": str(store)}, martlet.folder)
    running = other.start("run", "recipe.yaml", "--json")
    wait_until(lambda: list(store.glob("scratch/*/work/checkpoint-2")), 120)
    time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait(30)
    assert not list(store.glob("actions/*")) or running.returncode == -signal.SIGKILL
    assert statuses(other.json("plan", "recipe.yaml"))["train"] == "resume"
    record = other.json("run", "recipe.yaml")
    assert statuses(record)["train"] == "resumed"
    assert by_title(record)["train"]["artifact"] == by_title(first)["train"]["artifact"]


def test_rerun_repeats_one_stage_with_the_inputs_it_had(martlet: Martlet, first: dict[str, Any]) -> None:
    again = martlet.json("rerun", "merge", "--run", first["run"])
    assert statuses(again) == {"merge": "ran"}
    assert again["stages"][0]["artifact"] == by_title(first)["merge"]["artifact"]
    adapter = by_title(first)["train"]["artifact"]["digest"]
    changed = martlet.json("rerun", "train", "--artifact", adapter, "--max_steps", "2")
    assert changed["stages"][0]["metrics"]["global_step"] == 2


def test_rerun_from_a_stage_runs_what_follows(martlet: Martlet, first: dict[str, Any]) -> None:
    again = martlet.json("rerun", "--from", "quantize", "--run", first["run"])
    found = statuses(again)
    assert found["quantize"] == "ran"
    assert {title: found[title] for title in ("download", "train", "merge")} == dict.fromkeys(
        ("download", "train", "merge"), "cached"
    )


def test_the_lineage_of_the_shipped_model_reaches_the_rows(martlet: Martlet, first: dict[str, Any]) -> None:
    digest = by_title(first)["quantize"]["artifact"]["digest"]
    text = martlet("artifacts", "lineage", digest).stdout
    assert all(
        stage in text for stage in ("quantize", "merge", "train", "tokenize", "preprocess", "download", "rows.jsonl")
    )
    assert martlet.json("artifacts", "verify")["ok"] is True


def test_export_of_a_checkpoint_is_found_in_the_store(martlet: Martlet, first: dict[str, Any]) -> None:
    checkpoint = str(Path(first["output_dir"]) / "checkpoint-6")
    record = martlet.json("export", "--ckpt_dir", checkpoint, "--merge_lora", "true", "--output_dir", "exported")
    merged = by_title(record)["merge"]
    assert merged["artifact"] == by_title(first)["merge"]["artifact"]
    assert (martlet.folder / "exported" / "model.safetensors").is_file()


@pytest.fixture(scope="module")
def worker(martlet: Martlet) -> Any:
    """`martlet setup` and one worker on the server in use."""
    text = martlet("setup").stdout
    assert "deployment sft-then-export/local: " in text
    again = martlet("setup").stdout
    assert "deployment sft-then-export/local: updated" in again
    assert "work pool martlet: there" in again
    log = (martlet.folder / "worker.log").open("w")
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "martlet"]
    process = subprocess.Popen(command, cwd=martlet.folder, env=martlet.environment, stdout=log, stderr=log)
    yield process
    process.terminate()
    process.wait(30)
    log.close()


def deployment_run(martlet: Martlet, *words: str) -> dict[str, Any]:
    """`prefect deployment run …` to its end; answers the flow run."""
    command = [sys.executable, "-m", "prefect", "deployment", "run", *words, "--watch"]
    done = subprocess.run(
        command, cwd=martlet.folder, env=martlet.environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr + (martlet.folder / "worker.log").read_text()[-3000:]
    runs = api(martlet.environment, "flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    run: dict[str, Any] = runs[0]
    assert run["state"]["type"] == "COMPLETED"
    return run


def test_a_deployment_runs_on_a_worker_and_shows_arrows_and_cached_states(
    martlet: Martlet, first: dict[str, Any], worker: Any, tiny_model: Path
) -> None:
    words = ["sft-then-export/local", "-p", f"model={tiny_model}", "-p", 'dataset=["rows.jsonl"]', "-p", "max_steps=2"]
    words += ["-p", "split_dataset_ratio=0.2", "-p", "max_length=128", "-p", "logging_steps=1"]
    run = deployment_run(martlet, *words)
    assert run["name"] == "tiny-llama · rows · r8"
    tasks = api(martlet.environment, "task_runs/filter", {"task_runs": {}, "flow_runs": {"id": {"any_": [run["id"]]}}})
    stages = {task["id"]: task["name"].partition(" · ")[0] for task in tasks}  # a hit says so behind its name
    upstream = {
        stages[task["id"]]: {item["id"] for items in task["task_inputs"].values() for item in items if "id" in item}
        for task in tasks
    }
    ids = {stage: id_ for id_, stage in stages.items()}
    assert upstream["train"] == {ids["download"], ids["tokenize"]}
    assert upstream["merge"] == {ids["download"], ids["train"]}
    again = deployment_run(martlet, *words)
    tasks = api(martlet.environment, "task_runs/filter", {"flow_runs": {"id": {"any_": [again["id"]]}}})
    assert {task["state"]["name"] for task in tasks} == {"Cached"}


def test_a_stage_is_a_deployment_that_takes_artifacts_by_digest(
    martlet: Martlet, first: dict[str, Any], worker: Any
) -> None:
    model = by_title(first)["merge"]["artifact"]["digest"]
    deployment_run(martlet, "quantize/gpu", "-p", f"model={model}", "-p", "quant_method=bnb", "-p", "quant_bits=8")
    made = martlet.json("artifacts", "list")
    assert any(record["stage"] == "quantize" for record in made)
