"""One stage, run: hits, misses, failures, resumption, plans, races."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stages.artifacts.reference import ArtifactRef
from stages.artifacts.store import LocalStore
from stages.context import NullReporter
from stages.errors import DataError, Interrupted, StageFailed, UserError
from stages.run import StageResult, plan_stage, run_stage


class Recorder(NullReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[float, float, str]] = []

    def progress(self, done: float, total: float, text: str) -> None:
        self.told.append((done, total, text))


@pytest.fixture
def run(store: LocalStore, text_file: Path, tiny: ModuleType) -> Any:
    """`run(times=3)`, with `source` for another input."""

    def call(source: Any = text_file, stage: Any = tiny.REPEAT, options: dict[str, Any] | None = None, **values: Any):  # type: ignore[no-untyped-def]
        inputs = {} if source is None else {"text": source}
        return run_stage(stage, tiny.TinyArguments(**values), inputs, store=store, **(options or {}))

    return call


@pytest.fixture
def plan(store: LocalStore, text_file: Path, tiny: ModuleType) -> Any:
    def call(source: Any = text_file, stage: Any = tiny.REPEAT, **values: Any):  # type: ignore[no-untyped-def]
        inputs = {} if source is None else {"text": source}
        return plan_stage(stage, tiny.TinyArguments(**values), inputs, store=store)

    return call


def content(store: LocalStore, reference: ArtifactRef | str, tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / f"content-{time.time_ns()}"
    store.check_out(reference, folder)
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.txt")}


def calls(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


# --- results ---


def test_a_stage_runs_once(run: Any, store: LocalStore, tmp_path: Path) -> None:
    log = tmp_path / "calls"
    first = run(times=3, calls=str(log))
    second = run(times=3, calls=str(log))
    assert (first.status, second.status) == ("ran", "cached")
    assert calls(log) == 1
    assert second.artifact == first.artifact
    assert (second.key, second.attachments, second.metrics) == (first.key, first.attachments, first.metrics)
    assert first.metrics == {"times": 3, "first_step": 0}
    assert content(store, first.artifact, tmp_path) == {"sub/repeated.txt": "swift\n" * 3}
    assert content(store, first.attachments, tmp_path) == {"log.txt": "from step 0\n"}
    assert first.peak_memory_bytes > 1_000_000
    assert list((store.root / "scratch").iterdir()) == []


def test_an_input_may_be_an_artifact_or_a_path(run: Any, store: LocalStore, text_file: Path) -> None:
    ref = store.take_in(text_file)
    by_ref, by_path, by_argument = run(source=ref), run(source=text_file), run(source=None, path=str(text_file))
    assert by_ref.key == by_path.key == by_argument.key
    assert by_ref.inputs == by_path.inputs == {"text": ref}


def test_what_a_stage_does_not_read_does_not_void_its_result(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    first = run(source=folder)
    (folder / "weights.bin").write_text("new")
    assert run(source=folder).status == "cached"
    (folder / "a.txt").write_text("b")
    second = run(source=folder)
    assert (second.status, second.key != first.key) == ("ran", True)


def test_inputs_are_read_only_links_to_what_is_read(
    run: Any, store: LocalStore, tiny: ModuleType, tmp_path: Path
) -> None:
    from dataclasses import replace

    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("a.txt", "weights.bin"):
        (folder / name).write_text(name)
    seen: list[tuple[str, int, int]] = []

    def look(arguments: Any, inputs: Any, out: Path, context: Any) -> dict[str, Any]:
        seen.extend((path.name, path.stat().st_mode & 0o777, path.stat().st_nlink) for path in inputs["text"].iterdir())
        (out / "x").write_text("x")
        return {}

    run(source=folder, stage=replace(tiny.REPEAT, name="look", function=look))
    assert seen == [("a.txt", 0o444, 2)]


def test_a_stage_that_writes_to_its_input_cannot_spoil_the_store(run: Any, store: LocalStore, text_file: Path) -> None:
    """As root it can write; the next look at the blob sees it."""
    ref = store.take_in(text_file)
    run(source=ref, fault="write input")
    assert not store.is_whole(ref)
    assert store.take_in(text_file) == ref
    assert store.is_whole(ref)


def test_progress_and_numbers_of_numpy(run: Any, tiny: ModuleType) -> None:
    from dataclasses import replace

    import numpy as np

    def measure(arguments: Any, inputs: Any, out: Path, context: Any) -> dict[str, Any]:
        (out / "x").write_text("x")
        return {"loss": np.float32(0.5), "rows": np.int64(3), "perplexity": float("inf"), "name": "x"}

    recorder = Recorder()
    run(options={"reporter": recorder})
    assert recorder.told[-1] == (10, 10, "step 10/10")
    metrics = run(stage=replace(tiny.REPEAT, name="measure", function=measure)).metrics
    assert json.loads(json.dumps(metrics)) == {"loss": 0.5, "rows": 3, "perplexity": "inf", "name": "x"}


def test_force_runs_in_spite_of_a_hit(run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "calls"
    first = run(calls=str(log))
    second = run(calls=str(log), options={"force": True})
    assert (second.status, second.artifact, calls(log)) == ("ran", first.artifact, 2)
    assert "not deterministic" not in caplog.text


def test_a_stage_that_is_not_deterministic_is_told_of(
    run: Any, tiny: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    from dataclasses import replace

    def draw(arguments: Any, inputs: Any, out: Path, context: Any) -> dict[str, Any]:
        (out / "x").write_text(str(time.time_ns()))
        return {}

    stage = replace(tiny.REPEAT, name="draw", function=draw)
    first = run(stage=stage)
    second = run(stage=stage, options={"force": True})
    assert f"the same key gave {first.artifact.digest[:19]} before and gives" in caplog.text
    assert run(stage=stage).artifact == second.artifact


def test_what_is_not_cacheable_always_runs(run: Any, tiny: ModuleType, plan: Any) -> None:
    assert [run(source=None, stage=tiny.ANNOUNCE).status for _ in range(2)] == ["ran", "ran"]
    planned = plan(source=None, stage=tiny.ANNOUNCE)
    assert (planned.status, planned.reason) == ("run", "always runs")


def test_damaged_attachments_are_left_out_of_a_hit(
    run: Any, store: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    first = run()
    blob = store.blobs.path(store.tree(first.attachments).files[0].sha256)
    blob.unlink()
    second = run()
    assert (second.status, second.attachments) == ("cached", None)
    assert "the logs and curves beside" in caplog.text


# --- failures ---


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("user", DataError, r"^no usable row in train\.jsonl$"),
        ("crash", StageFailed, r"^repeat failed: RuntimeError: shapes do not match$"),
        ("pipe", StageFailed, r"^repeat failed: its output cannot be kept: .*pipe is neither a file nor a folder$"),
        ("interrupt", KeyboardInterrupt, r"^$"),
    ],
)
def test_failures(run: Any, store: LocalStore, fault: str, error: type[BaseException], message: str) -> None:
    with pytest.raises(error, match=message):
        run(fault=fault)
    assert list((store.root / "actions").glob("*")) == []
    assert list(store.root.glob("scratch/*/inputs")) == list(store.root.glob("scratch/*/out")) == []
    assert (list(store.root.glob("scratch/*")) == []) is (fault == "user")
    assert run().status in ("ran", "resumed")


def test_the_traceback_of_a_breakdown_is_kept(run: Any, store: LocalStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(StageFailed):
        run(fault="crash")
    (path,) = store.root.glob("scratch/*/traceback.txt")
    assert 'raise RuntimeError("shapes do not match' in path.read_text()
    assert str(path) in caplog.text


def test_an_empty_output(run: Any, tiny: ModuleType) -> None:
    with pytest.raises(StageFailed, match=r"^nothing failed: it left its output folder empty$"):
        run(source=None, stage=tiny.NOTHING)


def test_metrics_that_are_not_json(run: Any, tiny: ModuleType) -> None:
    from dataclasses import replace

    def measure(arguments: Any, inputs: Any, out: Path, context: Any) -> dict[str, Any]:
        (out / "x").write_text("x")
        return {"where": Path("x")}

    with pytest.raises(StageFailed, match="measure failed: TypeError: Object of type PosixPath is not JSON"):
        run(stage=replace(tiny.REPEAT, name="measure", function=measure))


@pytest.mark.parametrize(
    ("inputs", "values", "message"),
    [
        ({}, {}, r"repeat needs its input text \(--input text=DIGEST_OR_PATH\)"),
        ({"txet": "text"}, {}, "repeat has no input 'txet'. Choose from: text, extra"),
        ({"text": "missing"}, {}, "missing.txt does not exist"),
        ({"text": "other"}, {}, r"input text of repeat has no file that matches \*\.txt; it holds data.csv"),
        ({"text": "text", "extra": "ref"}, {}, "input extra of repeat takes model, but sha256:.* is of kind files"),
        ({"text": "text"}, {"path": "x.txt"}, "repeat: input text is given twice: its arguments name x.txt"),
    ],
)
def test_wrong_inputs(
    store: LocalStore, text_file: Path, tiny: ModuleType, inputs: dict[str, str], values: dict[str, Any], message: str
) -> None:
    other = text_file.with_name("data.csv")
    other.write_text("x")
    sources = {
        "text": text_file,
        "missing": text_file.with_name("missing.txt"),
        "other": other,
        "ref": store.take_in(text_file),
    }
    given = {name: sources[what] for name, what in inputs.items()}
    for function in (run_stage, plan_stage):
        with pytest.raises(UserError, match=message):
            function(tiny.REPEAT, tiny.TinyArguments(**values), given, store=store)


# --- interrupted and resumed ---


def test_a_stage_that_was_stopped_goes_on(run: Any, plan: Any, store: LocalStore, tmp_path: Path) -> None:
    undisturbed = run(times=4)
    stops = iter([False, False, True])
    with pytest.raises(Interrupted, match="stopped after step 3"):
        run(times=5, options={"stop_requested": lambda: next(stops)})
    planned = plan(times=5)
    assert (planned.status, planned.reason) == ("resume", "a run of it was interrupted")
    result = run(times=5)
    assert (result.status, result.metrics["first_step"]) == ("resumed", 3)
    assert store.manifests(result.artifact)[0].resumed
    assert content(store, result.artifact, tmp_path) == {"sub/repeated.txt": "swift\n" * 5}
    assert undisturbed.status == "ran"
    assert plan(times=5).status == "cached"


def test_a_kill_in_the_middle(run: Any, store: LocalStore, text_file: Path, tiny: ModuleType) -> None:
    values = {"pause_seconds": 0.05}
    command = [sys.executable, str(tiny.__file__), store.location, str(text_file), json.dumps(values)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(store.root.glob("scratch/*/work/step")):
        time.sleep(0.01)
    time.sleep(0.12)
    process.kill()
    process.wait()
    result = run(**values)
    assert result.status == "resumed"
    assert 0 < result.metrics["first_step"] < 10
    assert run(options={"force": True}).artifact == result.artifact


# --- races ---


def test_two_processes_compute_one_key_once(
    store: LocalStore, text_file: Path, tiny: ModuleType, tmp_path: Path
) -> None:
    log = tmp_path / "calls"
    values = json.dumps({"pause_seconds": 0.06, "calls": str(log)})
    command = [sys.executable, str(tiny.__file__), store.location, str(text_file), values]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate() for process in processes]
    results = [json.loads(out) for out, _ in outputs]
    assert calls(log) == 1
    assert sorted(result["status"] for result in results) == ["cached", "cached", "ran"]
    assert len({result["artifact"]["digest"] for result in results}) == 1
    assert sum("repeat: waiting for process" in err for _, err in outputs) == 2


# --- plans ---


def test_plans(run: Any, plan: Any, store: LocalStore, text_file: Path, tmp_path: Path) -> None:
    assert plan().reason == "never run before"
    assert list(store.root.glob("blobs/*")) == []
    result: StageResult = run()
    planned = plan()
    assert (planned.status, planned.artifact, planned.key) == ("cached", result.artifact, result.key)
    assert planned.reason.startswith("made 20")
    assert plan(learning_rate=2e-4).reason == "learning_rate 1e-4 → 2e-4"
    assert plan(times=3, learning_rate=2e-4).reason == "learning_rate 1e-4 → 2e-4, times 2 → 3"
    text_file.write_text("swallow\n")
    assert plan().reason == "input text changed"
    run()
    for blob in store.root.glob("blobs/*/*"):
        blob.unlink()
    assert plan().reason == "its result is no longer whole in the store"


def test_a_plan_is_quick(run: Any, plan: Any, tmp_path: Path) -> None:
    """Also with thirty records to compare with; the fastest of some tries, for the machine may be busy."""
    for times in range(2, 32):
        run(times=times)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        assert plan(learning_rate=2e-4).reason == "learning_rate 1e-4 → 2e-4"
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.05
