"""Tells whether a model's own chat template writes what a registered one does: `detect_template(chat)`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from stages.data.chat_template import ChatTemplate, TemplateFailed
from stages.data.rows import RowError
from stages.data.templates.conversation import served_prompt
from stages.data.templates.meta import TemplateMeta, templates
from stages.data.templates.native import NativeTemplate
from stages.data.templates.rendered import TemplateSettings
from stages.errors import ArgumentsError

__all__ = ["CALLS", "PROBES", "detect_template", "prompts_agree"]

Row = Mapping[str, Any]


def _talk(*turns: str, system: str | None = None) -> Row:
    """Questions and answers in turn."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return {"messages": [*messages, *({"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns))]}


THOUGHT = "<think>\nIt is odd.\n</think>\n\nSeven."
PROBES: tuple[Row, ...] = (
    _talk("What is seven?", "A prime."),
    _talk("What is seven?", "A prime.", system="Speak of numbers."),
    _talk("What is seven?", "A prime.", "And eight?", "Even.", "Nine?", "A square.", system="Speak of numbers."),
    _talk("What is seven?", "A prime.", "And eight?", "Even."),
    _talk("  What is seven? \n", "\n\n A prime.\n ", " And eight?\n\n", " Even. ", system=" Speak of numbers.\n"),
    _talk("\t", " .\n"),
    _talk("What is seven?", "A prime.", system=""),
    _talk("七是什么？🐦\r\n<b>&amp;'\"{{x}}", "一个质数。", "八呢？", "偶数。é", system="谈数字。"),
    _talk("How many?", THOUGHT, "Again?", THOUGHT),
    _talk("How many?", "<think>\n\n</think>\n\nSeven.", "Again?", "Seven.\n</think>\n"),
)

TOOL = {
    "type": "function",
    "function": {
        "name": "is_prime",
        "description": "Tells whether a number is prime, <7> & 'é'.",
        "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    },
}


def _with_tools(*turns: tuple[str, str, Any], tools: int = 1) -> Row:
    messages: list[dict[str, Any]] = []
    for role, content, calls in turns:
        called = [{"name": "is_prime", "arguments": {"n": n}} for n in calls]
        messages.append({"role": role, "content": content, **({"tool_calls": json.dumps(called)} if called else {})})
    return {"messages": messages, **({"tools": json.dumps([TOOL] * tools)} if tools else {})}


CALLS: tuple[Row, ...] = (
    _with_tools(("user", "Hi", ()), ("assistant", "Hello", ())),
    _with_tools(("system", "Speak.", ()), ("user", "Hi", ()), ("assistant", "Hello", ()), tools=2),
    _with_tools(
        ("user", "Is 7?", ()), ("assistant", "", (7,)), ("tool", '{"yes": true}', ()), ("assistant", "It is.", ()),
        ("user", "And 8?", ()), ("assistant", "I look.\n", (8,)), ("tool", "no", ()), ("assistant", "No.", ()),
    ),
    _with_tools(
        ("user", "7, 8?", ()), ("assistant", "", (7, 8)), ("tool", "yes", ()), ("tool", "no", ()),
        ("assistant", "7.", ()),
    ),
    _with_tools(
        ("user", "Is 7?", ()), ("assistant", "Action: is_prime\nAction Input: 7\nObservation:", ()),
        ("tool", "yes\n", ()), ("assistant", "Final Answer: it is.", ()),
    ),
)  # fmt: skip


def detect_template(own: ChatTemplate) -> TemplateMeta | None:
    """The first registered template that gives the prompts that `own` gives, and the conversations where it can.

    That an answer ends with nothing, that what asks for an answer is written at the end of all, and that the prompt
    is no part of the conversation, are what own templates get wrong and a registered one puts right.
    """
    theirs = [_theirs(own, probe) for probe in PROBES]
    if theirs[0] is None:
        return None
    return next((meta for meta in templates() if _same(meta, own.special_tokens, theirs)), None)


def prompts_agree(native: NativeTemplate, chat: ChatTemplate, probes: Iterable[Row]) -> bool:
    """Whether a chat template gives the prompts of a registered one, refusals included."""
    return all(_prompt(native, probe) == _served(chat, probe) for probe in probes)


def _theirs(own: ChatTemplate, probe: Row) -> tuple[str, str] | None:
    try:
        return own.render(probe["messages"]), served_prompt(own, probe)
    except TemplateFailed:
        return None


def _same(meta: TemplateMeta, tokens: Mapping[str, str], theirs: list[tuple[str, str] | None]) -> bool:
    try:
        native = NativeTemplate(meta, tokens, TemplateSettings())
    except ArgumentsError:
        return False
    for probe, expected in zip(PROBES, theirs, strict=True):
        prompt = _prompt(native, probe)
        if prompt is None or expected is None:
            if (prompt is None) != (expected is None):
                return False
            continue
        whole, served = expected
        written = native.render(probe).text
        forms = (written, written + native.asking("user", True), written.removesuffix(native.sep(True)))
        if prompt != served or (whole.startswith(served) and whole not in forms):
            return False
    return True


def _prompt(native: NativeTemplate, probe: Row) -> str | None:
    try:
        return native.prompt(probe)
    except RowError:
        return None


def _served(chat: ChatTemplate, probe: Row) -> str | None:
    try:
        return served_prompt(chat, probe)
    except TemplateFailed:
        return None
