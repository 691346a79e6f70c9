from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages.data.tokenizer import load_tokenizer
from stages.errors import ModelError

TEXTS = ["<|im_start|>user\nthe capital of France<|im_end|>", "  a\n\n\tb ", "é中文🎉", "", "red green 123"]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def change(path: Path, **values: Any) -> None:
    config = json.loads(path.read_text())
    config.update(values)
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    "name", ["TokenizersBackend", "PreTrainedTokenizerFast", "Qwen2Tokenizer", "LlamaTokenizerFast"]
)
def test_ids_and_rendering_are_those_of_transformers(model: Path, name: str) -> None:
    from transformers import AutoTokenizer

    change(model / "tokenizer_config.json", tokenizer_class=name)
    theirs, ours = AutoTokenizer.from_pretrained(model), load_tokenizer(model)
    for text in TEXTS:
        assert ours.tokenizer.encode(text, add_special_tokens=False).ids == theirs.encode(
            text, add_special_tokens=False
        )
    assert ours.template is not None
    messages = [{"role": "user", "content": "red?"}, {"role": "assistant", "content": "blue"}]
    assert ours.template.render(messages) == theirs.apply_chat_template(messages, tokenize=False)
    assert (ours.token_id("eos_token"), ours.token_id("pad_token")) == (theirs.eos_token_id, theirs.pad_token_id)
    assert "<|im_start|>" in ours.added_tokens
    assert ours.token_id("mask_token") is None


def test_a_special_token_that_only_the_configuration_names_is_known(model: Path) -> None:
    from transformers import AutoTokenizer

    change(model / "tokenizer_config.json", pad_token="<|new pad|>")
    theirs, ours = AutoTokenizer.from_pretrained(model), load_tokenizer(model)
    assert ours.token_id("pad_token") == theirs.pad_token_id
    text = "red<|new pad|>blue"
    assert ours.tokenizer.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    ("config", "tokenizer_config", "expected"),
    [
        ({}, {}, 256),
        ({"max_position_embeddings": None}, {"model_max_length": 99}, 99),
        ({"max_position_embeddings": None}, {"model_max_length": 10**30}, None),
        ({"max_position_embeddings": None, "text_config": {"max_position_embeddings": 77}}, {}, 77),
    ],
)
def test_the_longest_row_that_the_model_takes(
    model: Path, config: dict[str, Any], tokenizer_config: dict[str, Any], expected: int | None
) -> None:
    change(model / "config.json", **config)
    change(model / "tokenizer_config.json", model_max_length=None)
    change(model / "tokenizer_config.json", **tokenizer_config)
    assert load_tokenizer(model).max_length == expected


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        ("from the config", "from the config"),
        ([{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "tools", "template": "t"}], None),
        (None, None),
    ],
)
def test_where_the_template_stands(model: Path, template: Any, rendered: str | None) -> None:
    (model / "chat_template.jinja").unlink()
    change(model / "tokenizer_config.json", chat_template=template)
    found = load_tokenizer(model).template
    assert (found.render([]) if found else None) == rendered


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "tokenizer.json is damaged"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not JSON"),
        ("config.json", None, "config.json is missing"),
        ("tokenizer.json", None, "the model's tokenizer cannot be opened"),
    ],
)
def test_a_damaged_tokenizer_is_one_clear_line(model: Path, name: str, content: str | None, message: str) -> None:
    (model / name).unlink()
    if content is not None:
        (model / name).write_text(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_tokenizer(model)
    assert "\n" not in str(caught.value)


def test_opening_the_usual_tokenizer_does_not_import_transformers(tiny_model: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from stages.data.tokenizer import load_tokenizer; "
        f"load_tokenizer(Path({str(tiny_model)!r})).template.render([]); "
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
