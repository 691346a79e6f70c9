"""The Jinja that an export carries gives the prompts of training, also as transformers itself renders it."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from stages.data.chat_template import ChatTemplate, TemplateFailed
from stages.data.rows import RowError
from stages.data.templates.conversation import served_prompt, spoken, tools_of
from stages.data.templates.detect import CALLS, PROBES
from stages.data.templates.meta import TemplateMeta, find_template, templates
from stages.data.templates.native import NativeTemplate
from stages.data.templates.rendered import TemplateSettings

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS_PROMPTS = ["react_en", "react_zh", "glm4", "toolbench", "custom", "hermes", "qwen"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


SCRAPS = [
    " ", "\n", "\t", "a", "é", "七🐦", "<think>", "</think>", "<think>\n", "\n</think>\n\n", "Observation:",
    "Action: f", "{{x}}", "{% if %}", "'", '"', "\\", "\\n", "<|im_end|>", "\r\n", "✿RESULT✿:", "<tool_call>", "\u2028",
]  # fmt: skip


def random_row(random: Random) -> dict[str, Any]:
    """Scraps of what templates look for, calls, and what tools return, in any order that a row may have."""

    def text() -> str:
        return "".join(random.choice(SCRAPS) for _ in range(random.randint(0, 5)))

    messages = [{"role": "system", "content": text()}] if random.random() < 0.4 else []
    for _ in range(random.randint(1, 3)):
        messages.append({"role": "user", "content": text()})
        while random.random() < 0.4:
            called = [{"name": "f", "arguments": {"x": text()}} for _ in range(random.randint(0, 2))]
            content = text() + random.choice(["", "Observation:"])
            calls = {"tool_calls": json.dumps(called)} if called else {}
            messages.append({"role": "assistant", "content": content, **calls})
            messages += [{"role": "tool", "content": text()} for _ in range(random.randint(1, 2))]
        messages.append({"role": "assistant", "content": text() or "x"})
    tools = json.dumps([{"name": "f", "description": text()}] * random.randint(1, 2))
    return {"messages": messages, **({"tools": tools} if random.random() < 0.4 else {})}


def opened(meta: TemplateMeta, own: str | None = None, **settings: Any) -> NativeTemplate:
    return NativeTemplate(meta, TOKENS, TemplateSettings(**settings), ChatTemplate(own, TOKENS) if own else None)


def exported(native: NativeTemplate, *, tools: bool = False) -> ChatTemplate:
    text = native.chat_template(tools=tools)
    assert text is not None
    return ChatTemplate(text, TOKENS)


@pytest.mark.parametrize("meta", templates(), ids=lambda meta: meta.name)
def test_every_template_as_jinja(meta: TemplateMeta) -> None:
    for tools_prompt in TOOLS_PROMPTS if meta.name in ("chatml", "llama3", "glm4", "gemma3") else ["react_en"]:
        for system in (None, "", "Spéak \"so\" \\ {{ '七' }}\n"):
            if system and not meta.takes_system:
                continue
            native = opened(meta, tools_prompt=tools_prompt, system=system)
            jinja = exported(native, tools=True)
            compared = 0
            for row in (*PROBES, *CALLS):
                try:
                    prompt, text = native.prompt(row), native.render(row).text
                except RowError:
                    with pytest.raises(TemplateFailed, match="has no place for a system message"):
                        served_prompt(jinja, row)
                    continue
                compared += 1
                assert served_prompt(jinja, row) == prompt
                whole = jinja.render(spoken(row["messages"]), tools=tools_of(row))
                assert whole == text or meta.thinking is not None
            assert compared >= 5


@pytest.mark.parametrize("tools_prompt", ["react_en", "glm4", "hermes"])
def test_random_rows(tools_prompt: str) -> None:
    random = Random(tools_prompt)
    num_compared = 0
    for meta in templates():
        native = opened(meta, tools_prompt=tools_prompt)
        everything = opened(meta, tools_prompt=tools_prompt, loss_scale="all+react")
        jinja = exported(native, tools=True)
        for row in [random_row(random) for _ in range(8)]:
            try:
                prompt, text = native.prompt(row), native.render(row).text
            except RowError:
                continue
            num_compared += 1
            assert served_prompt(jinja, row) == prompt
            assert text.startswith(prompt)
            assert everything.render(row).text == text
    assert num_compared > 150


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3"])
def test_random_rows_as_qwens_own_writes_them(name: str, shipped: Callable[[str], ChatTemplate]) -> None:
    chat = shipped(name)
    native = NativeTemplate(find_template(name), {}, TemplateSettings(tools_prompt="hermes"))
    random = Random(name)
    for row in [random_row(random) for _ in range(100)]:
        assert native.prompt(row) == served_prompt(chat, row)


@pytest.mark.parametrize("name", ["llama3", "mistral_nemo", "qwen3"])
def test_transformers_renders_it_the_same(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    native = opened(find_template(name), system="S", tools_prompt="react_en")
    jinja = exported(native, tools=True)
    for row in (*PROBES, *CALLS):
        rendered, _ = render_jinja_template(
            [spoken(row["messages"][:-1])],
            tools=tools_of(row),
            chat_template=jinja.text,
            add_generation_prompt=True,
            **TOKENS,
        )
        assert rendered[0] == native.prompt(row)


def test_content_may_come_in_parts_and_calls_without_content() -> None:
    jinja = exported(opened(find_template("chatml"), tools_prompt="hermes"), tools=True)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert jinja.render([{"role": "user", "content": parts}]) == "<|im_start|>user\nab<|im_end|>\n"
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    assert jinja.render(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    ) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
        '<tool_call>\n{"name": "f", "arguments": {"x":1}}\n</tool_call><|im_end|>\n'
    )


@pytest.mark.parametrize(
    ("name", "own", "settings", "tools", "expected"),
    [
        ("chatml", CHATML, {}, False, None),
        ("chatml", CHATML, {"system": ""}, False, None),
        ("chatml", CHATML, {"system": "Be."}, False, "wrapped"),
        ("chatml", CHATML, {}, True, "made"),
        ("smollm", CHATML, {}, False, "made"),
        ("llama3", CHATML, {}, False, "made"),
        ("chatml", None, {}, False, "made"),
    ],
)
def test_which_template_an_export_carries(
    name: str, own: str | None, settings: dict[str, str], tools: bool, expected: str | None
) -> None:
    text = opened(find_template(name), own, **settings).chat_template(tools=tools)
    if expected == "wrapped":
        assert text == (
            "{%- if not messages or messages[0]['role'] != 'system' %}\n"
            "{%- set messages = [{'role': 'system', 'content': \"Be.\"}] + (messages | list) %}\n"
            "{%- endif %}\n" + CHATML
        )
    else:
        assert text is None if expected is None else text is not None and text.startswith("{%- macro said(turn) %}")


@pytest.mark.parametrize("system", ["Be.", ""])
@pytest.mark.parametrize("own", ["qwen2_5", "qwen3", "llama3_2", "gemma3", "phi3"])
def test_real_templates_with_a_system_message_of_ones_own(
    own: str, system: str, shipped: Callable[[str], ChatTemplate]
) -> None:
    chat = shipped(own)
    native = NativeTemplate(find_template(own), TOKENS, TemplateSettings(system=system), chat)
    text = native.chat_template()
    assert text is None or text.endswith(chat.text) or system == ""
    jinja = ChatTemplate(text or chat.text, TOKENS)
    for row in PROBES:
        assert served_prompt(jinja, row) == native.prompt(row)
    if system:
        assert system in native.prompt(PROBES[0])
