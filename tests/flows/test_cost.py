"""What a run cost, from its manifests and a price list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.cli import main
from flows.cost import Prices, add_cost, add_up, cost_line, load_prices, money
from flows.record import RunRecord, StageRecord
from flows.summary import print_run
from stages.artifacts.manifest import Manifest
from stages.artifacts.store import Store, open_store
from stages.errors import ArgumentsError

PRICES = """\
currency: EUR
cpu: 0.36
gpus: {"*H100*": 3.6, "*A100*80GB*": 1.8, "*A100*": 0.9}
"""
H100, A100, UNKNOWN = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "Quadro 9"


@pytest.fixture
def prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own price list."""
    path = tmp_path / "mine.yaml"
    path.write_text(PRICES)
    monkeypatch.setenv("MARTLET_PRICES", str(path))
    return path


def line(store: Store, folder: Path, stage: str, status: str, gpus: list[str], made_in: float) -> StageRecord:
    """A line of a record whose result a former run, or this one, made in `made_in` seconds."""
    source = folder / stage
    source.mkdir()
    (source / "result").write_text(stage)
    artifact = store.put(source, "files")
    key = stage.encode().hex().ljust(64, "0")
    machine: dict[str, Any] = {"gpus": gpus}
    store.commit(Manifest(artifact, stage, key, {}, {}, seconds=made_in, machine=machine))
    seconds = 0.01 if status == "cached" else made_in
    return StageRecord(stage, status=status, key=key, artifact=artifact, seconds=seconds)


@pytest.mark.parametrize(
    ("gpus", "price"),
    [
        ([], 0.36),
        ([H100], 3.6),
        ([H100, H100], 7.2),
        ([A100], 1.8),
        (["nvidia a100-pcie-40gb"], 0.9),
        ([UNKNOWN], None),
    ],
)
def test_the_price_of_a_machine(gpus: list[str], price: float | None, prices: Path) -> None:
    assert load_prices().of_machine(gpus) == price


def test_what_ran_costs_and_what_was_found_saves(prices: Path, tmp_path: Path) -> None:
    store = open_store()
    record = RunRecord("1", "sft", {})
    record.stages = [
        line(store, tmp_path, "download", "cached", [], 100.0),
        line(store, tmp_path, "train", "ran", [H100, H100], 3600.0),
        line(store, tmp_path, "merge", "ran", [], 10.0),
        line(store, tmp_path, "evaluate", "cached", [H100], 360.0),
        StageRecord("push_to_hub", status="skipped"),
        StageRecord("quantize", status="failed", seconds=5.0),
    ]
    add_cost(record, store)
    found = [(stage.gpu_hours, stage.cost, stage.saved_seconds, stage.saved_cost) for stage in record.stages]
    assert found == [
        (0.0, 0.0, 100.0, pytest.approx(0.01)),
        (2.0, pytest.approx(7.2), 0.0, 0.0),
        (0.0, pytest.approx(0.001), 0.0, 0.0),
        (0.0, 0.0, 360.0, pytest.approx(0.36)),
        (None, None, None, None),
        (None, None, None, None),
    ]
    assert record.cost == {
        "currency": "EUR",
        "seconds": 3610.0,
        "gpu_hours": 2.0,
        "cost": 7.201,
        "saved_seconds": 460.0,
        "saved_cost": 0.37,
        "unpriced": [],
    }
    assert cost_line(record.cost) == "3610.0 s, 2 GPU-hours, 7.20 EUR; the cache saved 460.0 s, 0.37 EUR"
    in_json = record.to_json()
    assert in_json["stages"][1]["gpu_hours"] == 2.0
    assert in_json["stages"][3]["saved_seconds"] == 360.0


def test_a_device_without_a_price_is_named_and_not_free(
    prices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store()
    record = RunRecord("1", "sft", {})
    record.stages = [line(store, tmp_path, "train", "ran", [UNKNOWN], 36.0)]
    add_cost(record, store)
    assert record.cost is not None
    assert (record.cost["cost"], record.cost["unpriced"]) == (None, [UNKNOWN])
    assert record.stages[0].cost is None
    print_run(record.to_json(), as_json=False)
    printed = " ".join(capsys.readouterr().out.split())
    assert "36.0 s, 0.01 GPU-hours; no price for Quadro 9: add it to configs/prices.yaml" in printed


def test_the_cost_of_several_runs_adds_up() -> None:
    one = {"currency": "EUR", "seconds": 1.5, "gpu_hours": 0.5, "cost": 2.0, "saved_seconds": 1.0, "saved_cost": 0.5}
    other = {**one, "unpriced": []}
    unpriced = {**one, "cost": None, "saved_cost": None, "unpriced": [UNKNOWN]}
    assert add_up([None]) is None
    assert add_up([other, None, other]) == {name: 2 * value for name, value in other.items()} | {"currency": "EUR"}
    total = add_up([other, unpriced])
    assert total is not None
    assert (total["gpu_hours"], total["cost"], total["unpriced"]) == (1.0, None, [UNKNOWN])


def test_the_closing_table_has_a_column_for_what_happened_only(
    prices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store()
    record = RunRecord("1", "sft", {})
    record.stages = [line(store, tmp_path, "merge", "cached", [], 12.0)]
    add_cost(record, store)
    print_run(record.to_json(), as_json=False)
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["stage", "status", "seconds", "saved", "artifact", "loss"]
    assert "the cache saved 12.0 s" in printed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read: No such file"),
        ("cpu: [", "not YAML, line 1"),
        ("cpu: 1\n", "currency: Field required"),
        ("currency: euro\n", "currency: String should match"),
        ("currency: EUR\ncpu: -1\n", "cpu: Input should be greater than or equal to 0"),
        ("currency: EUR\ngpus: {H100: dear}\n", "gpus.H100: Input should be a valid number"),
        ("currency: EUR\ngpu: {}\n", "gpu: Extra inputs are not permitted"),
        ("- 1\n", "the file: Input should be"),
    ],
)
def test_a_bad_price_list_is_one_line_and_no_run_is_lost_for_it(
    text: str | None, said: str, prices: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prices.unlink()
    if text is not None:
        prices.write_text(text)
    with pytest.raises(ArgumentsError) as caught:
        load_prices()
    assert said in str(caught.value)
    assert str(caught.value).startswith("MARTLET_PRICES=")
    store = open_store()
    record = RunRecord("1", "sft", {})
    record.stages = [line(store, tmp_path, "merge", "ran", [], 12.0)]
    add_cost(record, store)
    assert record.cost is not None
    assert (record.cost["seconds"], record.cost["cost"], record.cost["currency"]) == (12.0, None, None)
    assert said in caplog.text


@pytest.mark.parametrize("command", [["sft"], ["sweep", "recipe.yaml", "--lora_rank", "2", "3"]], ids=" ".join)
def test_a_bad_price_list_is_said_before_anything_runs(
    command: list[str],
    prices: Path,
    tiny_model: Path,
    alpaca_file: Path,
    in_tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prices.write_text("currency: euro\n")
    (in_tmp_path / "recipe.yaml").write_text("flow: sft\n")
    assert main([*command, "--model", str(tiny_model), "--dataset", str(alpaca_file)]) == 2
    captured = capsys.readouterr()
    assert "mine.yaml: currency: String should match" in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (in_tmp_path / "output").exists()


def test_the_price_list_that_is_shipped_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MARTLET_PRICES", raising=False)
    shipped = load_prices()
    assert isinstance(shipped, Prices)
    assert shipped.cpu
    for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA A100-SXM4-40GB", "Tesla T4", "NVIDIA L4"):
        assert shipped.of_gpu(name), name
    assert shipped.of_gpu(A100) != shipped.of_gpu("NVIDIA A100-SXM4-40GB")
    assert shipped.of_gpu("NVIDIA L40S") != shipped.of_gpu("NVIDIA L4")


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0.00 USD"), (1234.5, "1,234.50 USD"), (0.0042, "0.0042 USD"), (1e-7, "<0.0001 USD")]
)
def test_money(amount: float, text: str) -> None:
    assert money(amount, "USD") == text
