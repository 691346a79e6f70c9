"""The arrows of the house: flows → stages and never back, Prefect in flows alone, nothing heavy at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
HEAVY = {
    "accelerate", "bitsandbytes", "datasets", "evalscope", "fastapi", "gptqmodel", "huggingface_hub", "matplotlib",
    "modelscope", "numpy", "optimum", "pandas", "peft", "prefect", "pyarrow", "rich", "safetensors", "tokenizers",
    "torch", "transformers", "trl", "uvicorn", "boto3", "obstore",
}  # fmt: skip


def modules(room: str) -> list[Path]:
    return sorted((PROJECT / room).rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


def imported_at_start(tree: ast.Module) -> Iterator[str]:
    """What a module imports before anything of it is called; blocks for type checkers do not count."""
    for node in tree.body:
        always = isinstance(node, ast.Import | ast.ImportFrom | ast.Try | ast.With)
        if always or (isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node)):
            yield from imported(node)


@pytest.mark.parametrize("path", modules("stages"), ids=lambda path: str(path.relative_to(PROJECT)))
def test_stages_know_neither_flows_nor_prefect(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
    assert not roots & {"flows", "prefect", "tests"}


@pytest.mark.parametrize("path", modules("stages"), ids=lambda path: str(path.relative_to(PROJECT)))
def test_a_module_of_stages_is_light_to_import(path: Path) -> None:
    """Except for the modules that only a running stage imports: those with a heavy library in their first lines."""
    roots = {name.split(".")[0] for name in imported_at_start(ast.parse(path.read_text()))}
    assert not roots & HEAVY


def test_prefect_is_imported_only_where_a_flow_runs() -> None:
    with_prefect = {
        str(path.relative_to(PROJECT / "flows"))
        for path in modules("flows")
        if any(name.split(".")[0] == "prefect" for name in imported_at_start(ast.parse(path.read_text())))
    }
    running = {"dispatch.py", "execute.py", "flow.py", "states.py", "tasks.py", "sweep/flow.py"}
    shown = {"ui/board.py", "ui/form.py"}
    on_the_server = {"deployments.py", *(f"server/{name}.py" for name in ("automations", "check", "pool", "workers"))}
    assert with_prefect == running | shown | on_the_server


@pytest.mark.parametrize(
    "command",
    [
        ["martlet", "--help"],
        ["martlet", "sft", "--help"],
        ["martlet", "plan", "sft", "--model", "M", "--dataset", "/nowhere.jsonl"],
        ["python", "-m", "stages", "train", "--help"],
    ],
    ids=" ".join,
)
def test_help_and_plan_import_nothing_heavy(command: list[str], tmp_path: Path) -> None:
    """Checked by what is loaded, not by the clock, which lies on a busy machine; benchmarks/ has the seconds."""
    program = {
        "martlet": "from flows.cli import main; code = main(argv)",
        "python": "from stages.__main__ import main; code = main(argv[2:])",
    }[command[0]]
    code = "\n".join(
        [
            "import sys",
            f"argv = {command[1:]!r}",
            "try:",
            f"    {program}",
            "except SystemExit:",
            "    pass",
            f"print('HEAVY', sorted(set(sys.modules) & {HEAVY!r}))",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"MARTLET_STORE": str(tmp_path / "s")},
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_no_module_has_grown_into_two_rooms() -> None:
    generated = {"trainer.py"}
    lengths = {
        str(path.relative_to(PROJECT)): len(path.read_text().splitlines())
        for room in ("stages", "flows")
        for path in modules(room)
        if path.name not in generated
    }
    assert {path: length for path, length in lengths.items() if length > 450} == {}
