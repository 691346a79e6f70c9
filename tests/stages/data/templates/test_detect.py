"""Registered templates against real tokenizers' own chat templates, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stages.data.chat_template import ChatTemplate, TemplateFailed
from stages.data.rows import RowError
from stages.data.templates.conversation import served_prompt, spoken, tools_of
from stages.data.templates.detect import CALLS, PROBES, detect_template
from stages.data.templates.meta import find_template
from stages.data.templates.native import NativeTemplate
from stages.data.templates.rendered import TemplateSettings

Opener = Callable[[str], ChatTemplate]

# Conversations that no probe is: longer, with what templates look for in the content.
OTHERS: list[dict[str, Any]] = [
    {"messages": [*probe["messages"][:-1], {"role": "assistant", "content": answer}]}
    for probe in PROBES
    for answer in ("Äpfel — 苹果\n\n", "<|im_end|>", "</s> [INST]", "{{ bos_token }} {% if x %}")
] + [
    {
        "messages": [
            {"role": ("user", "assistant")[turn % 2], "content": f"{turn} \n {'x' * turn}"} for turn in range(12)
        ]
    }
]


def theirs(chat: ChatTemplate, row: Any) -> tuple[str, str] | None:
    try:
        return served_prompt(chat, row), chat.render(spoken(row["messages"]), tools=tools_of(row))
    except TemplateFailed:
        return None


def ours(native: NativeTemplate, row: Any) -> tuple[str, str] | None:
    try:
        return native.prompt(row), native.render(row).text
    except RowError:
        return None


@pytest.mark.parametrize(
    ("own", "name"),
    [
        ("qwen2_5", "qwen2_5"),
        ("qwen3", "qwen3"),
        ("qwen3_instruct_2507", "chatml"),
        ("qwen2_5_vl", "qwen"),
        ("llama3", "llama3"),
        ("llama3_1", "llama3_1"),
        ("llama3_2", "llama3_1"),
        ("gemma", "gemma"),
        ("gemma3", "gemma3"),
        ("phi3", "phi3"),
        ("phi3_5", "phi3_5"),
    ],
)
def test_shipped_templates_are_written_as_their_own_writes(own: str, name: str, shipped: Opener) -> None:
    chat = shipped(own)
    meta = detect_template(chat)
    assert meta is not None
    assert meta.name == name
    native = NativeTemplate(find_template(name), chat.special_tokens, TemplateSettings())
    for row in (*PROBES, *OTHERS):
        assert ours(native, row) == theirs(chat, row)


@pytest.mark.parametrize(
    ("own", "name"),
    [
        ("internlm2", "internlm2"),
        ("llama3", "llama3"),
        ("mistral_nemo", "mistral_nemo"),
        ("deepseek_v3", "deepseek_v3"),
    ],
)
def test_fetched_templates_are_prompted_as_their_own_prompts(own: str, name: str, fetched: Opener) -> None:
    chat = fetched(own)
    meta = detect_template(chat)
    assert meta is not None
    assert meta.name == name
    native = NativeTemplate(find_template(name), chat.special_tokens, TemplateSettings())
    for row in (*PROBES, *OTHERS):
        mine, other = ours(native, row), theirs(chat, row)
        assert mine is not None
        assert other is not None
        assert mine[0] == other[0]
        # Llama 3's first asks for an answer even behind the last one; Nemo's forgets the system message there.
        assert other[1] in (mine[1], mine[1] + native.asking("user", True)) or not other[1].startswith(other[0])


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3"])
def test_tools_in_hermes_wording_are_written_as_qwen_writes_them(name: str, shipped: Opener) -> None:
    chat = shipped(name)
    native = NativeTemplate(find_template(name), {}, TemplateSettings(tools_prompt="hermes"), chat)
    for row in CALLS:
        for end in range(2, len(row["messages"]) + 1):
            part = {**row, "messages": row["messages"][:end]}
            if part["messages"][-1]["role"] == "assistant":
                assert ours(native, part) == theirs(chat, part)
    assert native.chat_template() is None
    assert native.chat_template(tools=True) is None


def test_deepseeks_r1_keeps_the_last_thought_which_its_own_loses(shipped: Opener) -> None:
    chat = shipped("deepseek_r1_distill")
    assert getattr(detect_template(chat), "name", None) == "deepseek_r1"
    native = NativeTemplate(find_template("deepseek_r1"), chat.special_tokens, TemplateSettings())
    thought = PROBES[8]
    assert native.prompt(thought) == served_prompt(chat, thought)
    rendered = native.render(thought)
    assert rendered.text[rendered.spans[-1].start :] == "It is odd.\n</think>\n\nSeven.<｜end▁of▁sentence｜>"
    assert "It is odd" not in chat.render(thought["messages"])


@pytest.mark.parametrize("own", ["cohere2", "gptoss", "glm4moe", "lfm2", "gemma4", "qwen3_5_think", "nemotron_3_nano"])
def test_a_template_that_is_like_none_is_not_taken_for_one(own: str, shipped: Opener) -> None:
    assert detect_template(shipped(own)) is None


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("{{ m.content }}", "{{ m.content | trim }}"),
        lambda text: text.replace("<|im_end|>\n{%", "<|im_end|>{%"),
        lambda text: text.replace("assistant\n", "assistant"),
        lambda text: text.replace("{{ m.content }}", "{{ m.content | replace('é', 'e') }}"),
        lambda text: text.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}"),
        lambda text: text.replace("{% for m in messages %}", "{% for m in messages if m.content %}"),
        lambda text: text.replace("{% for m in messages %}", "{% for m in messages[-4:] %}"),
        lambda text: text.replace("{{ m.role }}", "{{ m.role if loop.index0 < 4 else m.role.upper() }}"),
        lambda text: "{{ '' if messages | length < 5 else raise_exception('no') }}" + text,
        lambda text: "{% if messages[0].role != 'system' %}<|im_start|>system\nHi<|im_end|>\n{% endif %}" + text,
    ],
)
def test_one_difference_is_enough(change: Callable[[str], str]) -> None:
    assert getattr(detect_template(ChatTemplate(CHATML, {})), "name", None) == "chatml"
    changed = change(CHATML)
    assert changed != CHATML
    assert detect_template(ChatTemplate(changed, {})) is None
