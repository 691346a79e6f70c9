"""The prompt that a row trains is what the finished model's tokenizer gives at serving time, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.artifacts.store import LocalStore
from stages.registry import get_stage
from stages.run import run_stage

pytestmark = pytest.mark.slow

TOOLS = [{"type": "function", "function": {"name": "red", "description": "d", "parameters": {"type": "object"}}}]
PLAIN = {"messages": [{"role": "user", "content": " what is red\n"}, {"role": "assistant", "content": "the sky"}]}
CALLS = {
    "tools": TOOLS,
    "messages": [
        {"role": "user", "content": "what is red"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "red", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "the sky"},
        {"role": "assistant", "content": "the sky is red"},
    ],
}


def stage(name: str, inputs: dict[str, Any], store: LocalStore, **arguments: Any) -> Any:
    made = get_stage(name)
    return run_stage(made, made.arguments(**arguments), inputs, store=store)


@pytest.mark.parametrize(
    ("row", "template", "expected"),
    [
        (PLAIN, {}, "<|im_start|>user\n what is red\n<|im_end|>\n<|im_start|>assistant\n"),
        (
            PLAIN,
            {"system": "Be “red”.\n{{x}}"},
            "<|im_start|>system\nBe “red”.\n{{x}}<|im_end|>\n<|im_start|>user\n what is red\n<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (PLAIN, {"template": "phi3"}, "<|user|>\n what is red\n<|end|>\n<|assistant|>\n"),
        (CALLS, {"tools_prompt": "hermes"}, None),
        (CALLS, {"tools_prompt": "react_en", "template": "qwen2_5"}, None),
    ],
)
def test_the_exported_tokenizer_gives_the_trained_prompt(
    tiny_model: Path, tmp_path: Path, store: LocalStore, row: dict[str, Any], template: dict[str, Any], expected: Any
) -> None:
    from transformers import AutoTokenizer

    rows = tmp_path / "rows.jsonl"
    rows.write_text((json.dumps(row) + "\n") * 4)
    model = stage("download", {}, store, model=str(tiny_model)).artifact
    dataset = stage("preprocess", {}, store, dataset=[str(rows)], split_dataset_ratio=0).artifact
    tokens = stage("tokenize", {"dataset": dataset, "model": model}, store, max_length=4096, **template).artifact
    settings = {"max_steps": 1, "gradient_checkpointing": False, "eval_strategy": "no"}
    adapter = stage("train", {"model": model, "tokens": tokens}, store, **settings).artifact
    merged = stage("merge", {"model": model, "adapter": adapter}, store).artifact
    store.copy_out(merged, tmp_path / "merged")
    store.copy_out(tokens, tmp_path / "tokens")

    import pyarrow as pa

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    with pa.ipc.open_stream(pa.memory_map(str(tmp_path / "tokens" / "train.arrow"))) as reader:
        trained = reader.read_all().slice(0, 1).to_pylist()[0]
    served = tokenizer.apply_chat_template(
        row["messages"][:-1], tools=row.get("tools"), add_generation_prompt=True, tokenize=False
    )
    if expected is not None:
        assert served == expected
    ids = tokenizer(served, add_special_tokens=False)["input_ids"]
    assert trained["input_ids"][: len(ids)] == ids
    last = row["messages"][-1]["content"]
    assert tokenizer.decode(trained["input_ids"][len(ids) :]).startswith(last)
