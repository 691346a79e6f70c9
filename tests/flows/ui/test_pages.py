"""What the pages of stages and runs say, made of real results in a store."""

from __future__ import annotations

from pathlib import Path

from flows.record import RunRecord, StageRecord
from flows.ui.card import model_card
from flows.ui.run import summary
from flows.ui.stage import Seen, live_page, stage_page
from stages.artifacts.reference import ArtifactRef
from stages.artifacts.store import open_store
from stages.run import StageResult, run_stage
from tests.stages.tiny import REPEAT, TinyArguments

ADAPTER = ArtifactRef("adapter", f"sha256:{'ab' * 32}", 37412)
MODEL = ArtifactRef("model", f"sha256:{'cd' * 32}", 269_000_000)


def run_tiny(tmp_path: Path) -> StageResult:
    (tmp_path / "text").mkdir(exist_ok=True)
    (tmp_path / "text" / "a.txt").write_text("hello ")
    return run_stage(REPEAT, TinyArguments(pause_seconds=0.03), {"text": tmp_path / "text"}, store=open_store())


def test_a_stage_that_ran_says_what_it_took(tmp_path: Path) -> None:
    result = run_tiny(tmp_path)
    text, sentence = stage_page(result, open_store())
    assert sentence == f"ran in {result.seconds:.2f} s"
    assert f"| seconds | {result.seconds:.2f} s |" in text
    assert "| saved by the cache | 0 s: nothing like it was in the store |" in text
    assert f"| result | model `{result.artifact.digest[:19]}`, 2.0 MB |" in text
    assert "| peak memory | " in text
    assert f"martlet artifacts show {result.artifact.digest[:19]}" in text


def test_a_hit_says_what_it_saved(tmp_path: Path) -> None:
    took = run_tiny(tmp_path).seconds
    text, sentence = stage_page(run_tiny(tmp_path), open_store())
    assert sentence == f"cached, which saved {took:.2f} s"
    assert f"| saved by the cache | {took:.2f} s, which it took on 20" in text
    assert "| peak memory | " in text, "that of the run which the cache saved"


def test_the_live_page_has_the_curve_and_the_newest_figures() -> None:
    seen = Seen(step=1200, metrics={"loss": 1.23456, "learning_rate": 1e-4}, pictures={"loss-curve": "aGk="})
    text = live_page(seen)
    assert text.startswith("![loss-curve](data:image/png;base64,aGk=)")
    assert "| at step 1,200 |" in text
    assert "| loss | 1.2346 |" in text


def record(**values: object) -> RunRecord:
    train = StageRecord("train", artifact=ADAPTER, seconds=9.2, metrics={"first_loss": 6.0, "last_loss": 5.0})
    train.arguments = {"train_type": "lora", "lora_rank": 4}
    return RunRecord(id="1bdfda0b-13be", flow="sft", arguments={"model": "org/M"}, stages=[train], **values)  # type: ignore[arg-type]


def test_the_summary_of_a_failed_run_says_how_to_go_on() -> None:
    failed = record(ok=False, error="merge failed: OSError: no space", exit_code=1)
    failed.stages.append(StageRecord("merge", status="failed"))
    text = summary(failed, {})
    assert "> merge failed: OSError: no space" in text
    assert "martlet rerun merge --run 1bdfda0b" in text
    assert "| merge | failed |" in text


def test_a_wrong_request_is_not_to_be_repeated() -> None:
    text = summary(record(ok=False, error="--lora_rnk is unknown", exit_code=2), {})
    assert "> --lora_rnk is unknown" in text
    assert "martlet rerun" not in text


def test_without_a_folder_the_summary_says_what_makes_one() -> None:
    assert f"`martlet artifacts export {ADAPTER.digest[:19]} FOLDER`" in summary(record(), {})
    assert "Output: `/out/v0`" in summary(record(output_dir="/out/v0"), {})


def test_the_card_is_that_of_the_last_product() -> None:
    made = record()
    assert model_card(made, {}).startswith("LoRA adapter, 37.4 kB")
    assert "AutoPeftModelForCausalLM" in model_card(made, {})
    made.stages.append(StageRecord("merge", artifact=MODEL, path="/out/merged"))
    made.stages.append(StageRecord("evaluate", "tuned", artifact=ADAPTER, metrics={"eval_loss": 4.98791}))
    text = model_card(made, {})
    assert text.startswith("Whole model, 269 MB")
    assert 'from_pretrained("/out/merged")' in text
    assert "| `lora_rank` | 4 |" in text
    assert "| tuned | 4.9879 |" in text


def test_a_run_without_a_model_has_no_card() -> None:
    assert model_card(RunRecord(id="x", flow="preprocess", arguments={}), {}) == ""
