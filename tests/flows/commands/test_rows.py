"""A row of the store, as the terminal shows it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main
from flows.commands.rows import row_text
from stages.artifacts.reference import ArtifactRef
from stages.artifacts.store import LocalStore
from stages.registry import get_stage
from stages.run import run_stage

ROWS = [
    {"query": "red", "response": "sky"},
    {"query": "blue", "response": "Action: sea", "rejected_response": "sand"},
    {"query": "far " * 200, "response": "away"},
]
HEAD = "<|im_start|>user\nblue<|im_end|>\n<|im_start|>assistant\n"


def stage(name: str, inputs: dict[str, Any], store: LocalStore, **arguments: Any) -> ArtifactRef:
    made = get_stage(name)
    return run_stage(made, made.arguments(**arguments), inputs, store=store).artifact


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[LocalStore, dict[str, ArtifactRef]]:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    store = LocalStore(folder / "store")
    model = store.put(tiny_model, "model")
    dataset = stage("preprocess", {}, store, dataset=[str(folder / "rows.jsonl")], split_dataset_ratio=0)
    inputs = {"dataset": dataset, "model": model}
    (folder / "scale.py").write_text(
        "from stages.data.loss_scale import register_loss_scale\n"
        "register_loss_scale('half_of_test', lambda answer, query: [(0, len(answer), 0.5)])\n"
    )
    own = {"loss_scale": "half_of_test", "custom_register_path": [str(folder / "scale.py")], "lazy_tokenize": True}
    cut = {"max_length": 100, "truncation_strategy": "delete", "loss_scale": "react"}
    return store, {
        "dataset": dataset,
        "model": model,
        "tokens": stage("tokenize", inputs, store, **cut),
        "lazy": stage("tokenize", inputs, store, lazy_tokenize=True, **cut),
        "own": stage("tokenize", inputs, store, **own),
    }


@pytest.fixture
def show(
    kept: tuple[LocalStore, dict[str, ArtifactRef]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """`martlet artifacts show` of one of the artifacts: exit code, what it printed, what it complained of."""
    monkeypatch.setenv("MARTLET_STORE", str(kept[0].location))

    def run(name: str, *words: str) -> tuple[int, str, str]:
        code = main(["artifacts", "show", kept[1][name].digest, *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.mark.parametrize("name", ["tokens", "lazy"])
def test_what_is_trained_is_marked_with_its_weight(show: Any, name: str) -> None:
    code, out, _ = show(name, "--row", "1")
    assert code == 0
    assert f"row 1 of {2 if name == 'tokens' else 3}\n" in out
    assert f"{HEAD}⟦×2 Action: sea⟧⟦<|im_end|>⟧\n" in out
    assert "the rejected answer: " in out
    assert f"{HEAD}⟦sand<|im_end|>⟧\n" in out


def test_plugins_are_loaded_for_rows_that_are_tokenized_later(
    show: Any, kept: tuple[LocalStore, dict[str, ArtifactRef]], tmp_path: Path
) -> None:
    assert "⟦×0.5 sky⟧" in show("own")[1]
    words = [sys.executable, "-m", "flows.cli", "artifacts", "show", kept[1]["own"].digest]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # where nothing was loaded before
    assert (done.returncode, "⟦×0.5 sky⟧" in done.stdout) == (0, True), done.stderr


def test_the_first_row_is_shown_by_itself(show: Any) -> None:
    _, out, _ = show("tokens")
    assert "⟦sky<|im_end|>⟧" in out
    assert "made by tokenize" in out


def test_as_json(show: Any) -> None:
    _, out, _ = show("tokens", "--row", "1", "--json")
    shown = json.loads(out)["shown"]
    assert [(one["text"], one["weight"]) for one in shown["stretches"]] == [
        (HEAD, 0.0),
        ("Action: sea", 2.0),
        ("<|im_end|>", 1.0),
        ("\n", 0.0),
    ]
    assert sum(one["tokens"] for one in shown["stretches"]) > 10


def test_a_row_of_a_dataset(show: Any) -> None:
    _, out, _ = show("dataset", "--row", "1", "--json")
    assert json.loads(out)["shown"]["columns"] == {
        "messages": [{"role": "user", "content": "blue"}, {"role": "assistant", "content": "Action: sea"}],
        "rejected_response": "sand",
    }


@pytest.mark.parametrize(
    ("name", "words", "line"),
    [
        ("tokens", ["--row", "2"], "error: `--row 2`: there are 2 rows, 0 to 1\n"),
        ("lazy", ["--row", "2"], "error: row 2 is left out of training: too long\n"),
        ("tokens", ["--row", "-1"], "error: `--row -1` is a whole number from 0, for `martlet artifacts show`\n"),
        ("model", ["--row", "0"], "error: `--row 0`: a model has no rows, only a dataset and tokens have\n"),
    ],
)
def test_what_cannot_be_shown(show: Any, name: str, words: list[str], line: str) -> None:
    assert show(name, *words)[0::2] == (2, line)


def test_colours_say_the_same() -> None:
    stretches = [
        {"text": "[bold]q", "weight": 0.0, "tokens": 2},
        {"text": "a", "weight": 1.0, "tokens": 1},
        {"text": "b", "weight": 2.0, "tokens": 1},
    ]
    text = row_text({"row": 0, "num_rows": 1, "stretches": stretches}, colour=True)
    assert (
        text == "row 0 of 1\n\n4 tokens, 2 of them trained\n\x1b[2m[bold]q\x1b[0m\x1b[1;32ma\x1b[0m\x1b[1;35mb\x1b[0m"
    )
