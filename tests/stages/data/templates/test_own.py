"""Rows written with a model's own Jinja: tools, calls, weights, prompts that the conversation does not begin with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from stages.data.chat_template import ChatTemplate
from stages.data.rows import RowError
from stages.data.templates.own import OwnTemplate
from stages.data.templates.rendered import TemplateSettings
from stages.errors import ArgumentsError, UserError

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TOOL = {"name": "f", "description": "d", "parameters": {}}
Opener = Callable[[str], ChatTemplate]

# It has a place for all: tools, calls as objects, tool turns.
OWN = (
    "{% if tools %}T:{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}{{ c.function.arguments.items() | list }}{% endfor %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def own(chat: ChatTemplate | str, **settings: Any) -> OwnTemplate:
    chat = ChatTemplate(chat, TOKENS) if isinstance(chat, str) else chat
    tokens = {*re.findall(r"<[^<>\s'\"{}]+>", chat.text), *chat.special_tokens.values()}
    return OwnTemplate(chat, tokens, TemplateSettings(**settings))


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def shown(template: OwnTemplate, row: dict[str, Any], answer: str | None = None) -> str:
    text, spans = template.render(row, answer=answer)
    assert text.startswith(template.prompt(row))
    for start, end, weight in reversed(spans):
        text = f"{text[:start]}[{text[start:end]}]{'' if weight == 1 else f'×{weight:g}'}{text[end:]}"
    return text


CALL = json.dumps([{"name": "f", "arguments": {"x": 1}}])
PLAIN = {"messages": [user("q"), assistant("a"), user("r"), assistant("b")]}
CALLED = {
    "messages": [user("q"), assistant("", tool_calls=CALL), {"role": "tool", "content": "four"}, assistant("b")],
    "tools": json.dumps([TOOL]),
}
TOOLS = 'T:[{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}]\n'


@pytest.mark.parametrize(
    ("loss_scale", "row", "expected"),
    [
        ("default", PLAIN, "<|user|>q<|end|><|assistant|>[a<|end|>]<|user|>r<|end|><|assistant|>[b<|end|>]"),
        ("last_round", PLAIN, "<|user|>q<|end|><|assistant|>a<|end|><|user|>r<|end|><|assistant|>[b<|end|>]"),
        ("all", PLAIN, "[<|user|>q<|end|><|assistant|>a<|end|><|user|>r<|end|><|assistant|>b<|end|>]"),
        (
            "default",
            {"messages": [user("q"), assistant("a", loss=False), user("r"), assistant("b", loss=None)]},
            "<|user|>q<|end|><|assistant|>a<|end|><|user|>r<|end|><|assistant|>[b<|end|>]",
        ),
        (
            "react",
            {"messages": [user("q"), assistant("Thought: t\nAction: f")]},
            "<|user|>q<|end|><|assistant|>[Thought: t\n][Action: f]×2[<|end|>]",
        ),
        (
            "default",
            CALLED,
            f"{TOOLS}<|user|>q<|end|><|assistant|>[<call>f[('x', 1)]<|end|>]<|tool|>four<|end|><|assistant|>[b<|end|>]",
        ),
        ("default", {"messages": [assistant("once")]}, "<|user|><|end|><|assistant|>[once<|end|>]"),
    ],
)
def test_what_is_learnt(loss_scale: str, row: dict[str, Any], expected: str) -> None:
    assert shown(own(OWN, loss_scale=loss_scale), row) == expected


def test_another_answer() -> None:
    assert shown(own(OWN), PLAIN, answer="no").endswith("<|assistant|>[no<|end|>]")


def test_the_system_message_is_what_the_export_carries() -> None:
    template = own(OWN, system="Be.")
    assert template.prompt(PLAIN).startswith("<|system|>Be.<|end|><|user|>q")
    text = template.chat_template()
    assert text is not None
    rendered = ChatTemplate(text, TOKENS).render(PLAIN["messages"][:-1], add_generation_prompt=True)
    assert rendered == template.prompt(PLAIN)
    assert own(OWN).chat_template() is None
    with pytest.raises(UserError, match=r"has no place for `--system 'Be\.'`"):
        own(
            "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}",
            system="Be.",
        )
    with pytest.raises(ArgumentsError, match="there is no loss scale"):
        own(OWN, loss_scale="none")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("c.function.arguments.items() | list", "c.function.arguments.upper()"),
        ("m.content or ''", "(m.content | length) * 'x' ~ m.content if not m.tool_calls else ''"),
    ],
)
def test_calls_are_given_in_the_form_that_the_template_takes(before: str, after: str) -> None:
    text = own(OWN.replace(before, after)).render(CALLED).text
    assert "<call>f" in text


@pytest.mark.parametrize(
    ("change", "row", "message"),
    [
        (("{{ tools | tojson }}", ""), CALLED, "has no place for tools: name another with `--template`, such as"),
        (("m.tool_calls or []", "[]"), CALLED, "has no place for tool_calls: name another with `--template`"),
        (
            ("{{ m.content or '' }}", "{{ m.content if m.role != 'tool' else '' }}"),
            CALLED,
            "leaves out what message 3, of a tool, says: name another with `--template`",
        ),
        (("{% if tools %}", "{{ raise_exception('no ' ~ messages[5].role) if messages[5] else '' }}{% if tools %}"),
         {"messages": [*PLAIN["messages"], user("s"), assistant("t")]},
         "the chat template refuses it: TemplateError: no assistant"),
    ],
)  # fmt: skip
def test_what_the_template_would_leave_out_is_an_error(
    change: tuple[str, str], row: dict[str, Any], message: str
) -> None:
    assert change[0] in OWN
    with pytest.raises(RowError) as caught:
        own(OWN.replace(*change)).render(row)
    assert message in str(caught.value)


THOUGHT = assistant("<think>\nhm\n</think>\n\nb")


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        # The prompt opens a thought, which an answer without one ends, and an answer with one goes on with.
        ("deepseek_r1_distill", assistant("b"), "\n</think>\n\nb<｜end▁of▁sentence｜>"),
        ("deepseek_r1_distill", THOUGHT, "hm\n</think>\n\nb<｜end▁of▁sentence｜>"),
        ("nemotron_3_nano", assistant("b"), "</think>b<|im_end|>"),
        ("nemotron_3_nano", THOUGHT, "hm\n</think>\n\nb<|im_end|>"),
        ("qwen3_5_think", assistant("b"), "\n</think>\n\nb<|im_end|>"),
        ("qwen3_5_think", THOUGHT, "hm\n</think>\n\nb<|im_end|>"),
    ],
)
def test_thoughts_go_on_from_the_prompt(name: str, answer: dict[str, Any], expected: str, shipped: Opener) -> None:
    template = own(shipped(name))
    row = {"messages": [user("q"), answer]}
    text, spans = template.render(row)
    assert text[len(template.prompt(row)) :].rstrip("\n") == expected
    assert [text[start:end] for start, end, _ in spans] == [expected]


def test_a_system_message_that_only_the_prompt_shows() -> None:
    """As Mistral Nemo's: it stands in the last question, if that is the last message."""
    text = (
        "<s>{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[INST]"
        "{{ messages[0].content ~ ' ' if loop.last and messages[0].role == 'system' else '' }}{{ m.content }}[/INST]"
        "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
    )
    row = {"messages": [{"role": "system", "content": "S"}, user("q"), assistant(" a")]}
    assert shown(own(text), row) == "<s>[INST]S q[/INST][ a</s>]"


@pytest.mark.parametrize("name", ["qwen3", "nemotron_3_nano", "deepseekv3"])
def test_the_same_answer_twice(name: str, shipped: Opener) -> None:
    """What a first answer says is not looked for in the last."""
    row = {"messages": [user("q"), THOUGHT, user("r"), THOUGHT]}
    text, spans = own(shipped(name)).render(row)
    first, second = (text[start:end] for start, end, _ in spans)
    assert "hm" not in first
    assert "hm" in second


def test_what_a_tool_returned_in_the_same_turn(shipped: Opener) -> None:
    row = {**CALLED, "messages": [*CALLED["messages"], user("r"), assistant("c")]}
    template = own(shipped("gemma4"))
    text, spans = template.render(row)
    # The model itself says <|tool_response>, and is then given one.
    called = "<|tool_call>call:f{x:1}<tool_call|><|tool_response>"
    assert [text[start:end] for start, end, _ in spans] == [called, "b<turn|>", "c<turn|>"]
