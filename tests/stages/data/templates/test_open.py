"""Which template a model and the settings give: a registered one, the model's own, or none at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.data.rows import RowError
from stages.data.templates import TemplateSettings, open_template
from stages.data.tokenizer import ModelTokenizer, load_tokenizer
from stages.errors import ArgumentsError, ModelError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHOUTING = CHATML.replace("{{ m.content }}", "{{ m.content.upper() if m.role == 'user' else m.content }}")
ROW = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def write_tokenizer(folder: Path, template: str | None, *, begins: bool = False) -> ModelTokenizer:
    """A tokenizer of bytes; with `begins`, one that puts <s> before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", len(letters))])
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text("{}")
    return load_tokenizer(folder)


WRITTEN = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"


@pytest.mark.parametrize(
    ("template", "settings", "name", "written"),
    [
        (CHATML, {}, "chatml", WRITTEN),
        (CHATML, {"template_backend": "jinja"}, "jinja", WRITTEN),
        (SHOUTING, {}, "jinja", WRITTEN.replace("q", "Q")),
        (SHOUTING, {"template": "chatml"}, "chatml", WRITTEN),
        (None, {"template": "llama2"}, "llama2", "<s>[INST] q [/INST] a </s>"),
        (None, {"use_chat_template": False}, "generation", "qa</s>"),
        (CHATML, {"use_chat_template": False, "template": "llama2"}, "generation", "qa</s>"),
    ],
)
def test_which_template(
    template: str | None, settings: dict[str, Any], name: str, written: str, tmp_path: Path
) -> None:
    tokenizer = write_tokenizer(tmp_path, template)
    opened = open_template(TemplateSettings(**settings), tokenizer)
    assert opened.name == name
    assert opened.render(ROW).text == written


def test_a_model_without_a_template(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path, None)
    with pytest.raises(
        ModelError, match=r"the model has no chat template\. Name one with `--template`, such as chatml"
    ):
        open_template(TemplateSettings(), tokenizer)
    with pytest.raises(
        ModelError, match="`--template_backend jinja` needs the model's own chat template, and it has none"
    ):
        open_template(TemplateSettings(template="chatml", template_backend="jinja"), tokenizer)


def test_jinja_is_not_what_a_name_is(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path, CHATML)
    with pytest.raises(ArgumentsError, match="`--template llama3` and `--template_backend jinja` exclude each other"):
        open_template(TemplateSettings(template="llama3", template_backend="jinja"), tokenizer)


@pytest.mark.parametrize(("begins", "before"), [(False, ""), (True, "<s>")])
def test_no_template_at_all(begins: bool, before: str, tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path, CHATML, begins=begins)
    template = open_template(TemplateSettings(use_chat_template=False, loss_scale="all"), tokenizer)
    alone = {"messages": [{"role": "assistant", "content": "once\n"}]}
    assert template.render(alone) == (f"{before}once\n</s>", [(0, len(before) + 9, 1.0)])
    assert template.render(ROW, answer="no").text == f"{before}qno</s>"
    assert template.prompt(ROW) == f"{before}q"
    assert template.chat_template() is None
    assert template.turn_end == "</s>"
    default = open_template(TemplateSettings(use_chat_template=False), tokenizer)
    assert default.render(ROW).spans == [(len(before) + 1, len(before) + 6, 1.0)]
    assert (
        default.render({"messages": [{"role": "user", "content": ""}, *alone["messages"]]}).text
        == f"{before}once\n</s>"
    )
    for messages, reason in (
        ([{"role": "system", "content": "S"}, *ROW["messages"]], "has no place for a system message"),
        (ROW["messages"] * 2, "writes one question and one answer, not 4 messages"),
    ):
        with pytest.raises(RowError, match=f"template generation {reason}"):
            template.render({"messages": messages})
