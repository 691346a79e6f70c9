"""Keys: what enters them, that they stay the same, and how a change is explained."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stages.artifacts.hashing import canonical_json
from stages.artifacts.key import action_key, compact, explain, library_versions
from stages.registry import get_stage

BODY: dict[str, Any] = {
    "stage": "train",
    "version": 1,
    "arguments": {"learning_rate": 1e-4, "target_modules": ["q_proj", "v_proj"], "seed": 42},
    "inputs": {"model": "sha256:a", "tokens": "sha256:b"},
    "libraries": {"transformers": "5.22.0", "peft": None},
}


def changed(**parts: dict[str, Any]) -> dict[str, Any]:
    return {name: value | parts[name] if name in parts else value for name, value in BODY.items()}


def without(part: str, name: str) -> dict[str, Any]:
    return {**BODY, part: {key: value for key, value in BODY[part].items() if key != name}}


# --- keys ---


def test_a_library_of_another_environment_is_the_one_in_its_lock() -> None:
    """However the environment that runs this is made up."""
    lock = Path(__file__).resolve().parents[3] / "containers" / "evaluate" / "requirements.lock"
    (pinned,) = (line.partition("==")[2] for line in lock.read_text().splitlines() if line.startswith("evalscope=="))
    found = library_versions(["evaluate/evalscope", "evaluate/no-such-distribution", "pydantic"])
    assert found == {"evalscope": pinned, "no-such-distribution": None, "pydantic": version("pydantic")}
    assert library_versions(get_stage("evaluate").libraries)["evalscope"] == pinned


def test_a_key_is_the_same_in_another_process(tiny: ModuleType) -> None:
    key, body = action_key(tiny.REPEAT, tiny.TinyArguments(times=3), {"text": "sha256:a", "extra": "sha256:b"})
    code = (
        f"import sys; sys.path.insert(0, {str(Path(str(tiny.__file__)).parent)!r});"
        "from tiny import REPEAT, TinyArguments; from stages.artifacts.key import action_key;"
        "print(action_key(REPEAT, TinyArguments(times=3), {'extra': 'sha256:b', 'text': 'sha256:a'})[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == key
    assert body["arguments"] == {"times": 3}


@pytest.mark.parametrize(
    ("values", "same"),
    [
        ({"times": 2}, True),
        ({"learning_rate": 1e-4}, True),
        ({"pause_seconds": 9.0, "calls": "/somewhere"}, True),
        ({"times": 3}, False),
        ({"learning_rate": 2e-4}, False),
    ],
)
def test_defaults_and_what_changes_nothing_are_left_out(tiny: ModuleType, values: dict[str, Any], same: bool) -> None:
    first, _ = action_key(tiny.REPEAT, tiny.TinyArguments(), {"text": "sha256:a"})
    second, _ = action_key(tiny.REPEAT, tiny.TinyArguments(**values), {"text": "sha256:a"})
    assert (first == second) is same


def test_the_stage_its_version_its_inputs_and_its_libraries_enter_the_key(tiny: ModuleType) -> None:
    stages = [
        tiny.REPEAT,
        replace(tiny.REPEAT, version=2),
        replace(tiny.REPEAT, name="other"),
        replace(tiny.REPEAT, libraries=()),
        replace(tiny.REPEAT, libraries=("pydantic", "no-such-distribution")),
    ]
    keys = {action_key(stage, tiny.TinyArguments(), {"text": "sha256:a"})[0] for stage in stages}
    keys.add(action_key(tiny.REPEAT, tiny.TinyArguments(), {"text": "sha256:b"})[0])
    keys.add(action_key(tiny.REPEAT, tiny.TinyArguments(), {"extra": "sha256:a"})[0])
    assert len(keys) == 7


def test_canonical_json_is_frozen() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "ä", "c": True}) == '{"a":"ä","b":[1,2.5,null],"c":true}'.encode()
    with pytest.raises(ValueError, match="Out of range float"):
        canonical_json({"loss": float("nan")})


# --- reasons ---


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (changed(arguments={"learning_rate": 2e-4}), "learning_rate 1e-4 → 2e-4"),
        (changed(arguments={"packing": True}), "packing false → true"),
        (without("arguments", "seed"), "seed 42 → 7"),
        (changed(arguments={"unheard_of": 1}), "unheard_of default → 1"),
        (changed(arguments={"target_modules": ["q_proj"]}), "target_modules q_proj v_proj → q_proj"),
        (changed(inputs={"model": "sha256:z"}), "input model changed"),
        (changed(inputs={"adapter": "sha256:z"}), "input adapter added"),
        (without("inputs", "tokens"), "input tokens removed"),
        (changed(libraries={"transformers": "5.23.0"}), "transformers 5.22.0 → 5.23.0"),
        (changed(libraries={"peft": "0.21.2"}), "peft not installed → 0.21.2"),
        ({**BODY, "version": 2}, "stage version 1 → 2"),
        (
            changed(arguments={"learning_rate": 0.05}, inputs={"model": "sha256:z"}),
            "learning_rate 1e-4 → 0.05, input model changed",
        ),
        (
            changed(arguments=dict.fromkeys("uvwxyz", 1)),
            "u default → 1, v default → 1, w default → 1, x default → 1 and 2 more",
        ),
        (BODY, "its result is no longer whole in the store"),
    ],
)
def test_reasons(body: dict[str, Any], reason: str) -> None:
    assert explain(body, [BODY], {"packing": False, "seed": 7}) == reason


def test_the_first_run_of_a_stage() -> None:
    assert explain(BODY, []) == "never run before"


def test_the_most_similar_run_is_compared_then_the_newest() -> None:
    other = changed(arguments={"learning_rate": 3e-4, "seed": 1}, inputs={"model": "sha256:z"})
    newer, older = changed(arguments={"seed": 2}), changed(arguments={"seed": 3})
    assert explain(BODY, [other, newer, older]) == "seed 2 → 42"
    assert explain(BODY, [other, older, newer]) == "seed 3 → 42"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-4, "1e-4"),
        (2.5e-5, "2.5e-5"),
        (0.001, "1e-3"),
        (0.05, "0.05"),
        (0.1, "0.1"),
        (0.30000000000000004, "0.30000000000000004"),
        (1.0, "1"),
        (-1.5, "-1.5"),
        (0.0, "0"),
        (1e-8, "1e-8"),
        (3e9, "3e9"),
        (123456.0, "123456"),
        (float("inf"), "inf"),
        (12, "12"),
        (True, "true"),
        (None, "none"),
        ("", '""'),
        ("nf4", "nf4"),
        ([], "nothing"),
        (["q_proj", 1e-4], "q_proj 1e-4"),
        ("x" * 60, "x" * 39 + "…"),
    ],
)
def test_values_are_written_as_a_person_would(value: object, text: str) -> None:
    assert compact(value) == text
