"""Tells whether a model's own chat template writes what a registered one does: `detect_template(chat)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.data.chat_template import ChatTemplate, TemplateFailed
from stages.data.rows import RowError
from stages.data.templates.meta import TemplateMeta, templates
from stages.data.templates.native import NativeTemplate
from stages.data.templates.rendered import TemplateSettings

__all__ = ["PROBES", "detect_template"]


def _talk(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    """Questions and answers in turn."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return [*messages, *({"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns))]


THOUGHT = "<think>\nIt is odd.\n</think>\n\nSeven."
PROBES: tuple[list[dict[str, str]], ...] = (
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


def detect_template(own: ChatTemplate) -> TemplateMeta | None:
    """The first registered template that writes every probe, and every prompt for its last answer, as `own` does."""
    theirs = [_theirs(own, probe) for probe in PROBES]
    if not isinstance(theirs[0], tuple):
        return None
    return next((meta for meta in templates() if _same(meta, own.special_tokens, theirs)), None)


def _theirs(own: ChatTemplate, probe: list[dict[str, str]]) -> tuple[str, str] | None:
    try:
        return own.render(probe), own.render(probe[:-1], add_generation_prompt=True)
    except TemplateFailed:
        return None


def _same(meta: TemplateMeta, tokens: Mapping[str, str], theirs: list[tuple[str, str] | None]) -> bool:
    template: Any = (meta.native or NativeTemplate)(meta, tokens, TemplateSettings())
    for probe, expected in zip(PROBES, theirs, strict=True):
        try:
            written = template.render({"messages": probe}).text, template.prompt({"messages": probe})
        except RowError:
            written = None
        if written != expected:
            return False
    return True
