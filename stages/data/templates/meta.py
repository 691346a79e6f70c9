r"""The parts that a chat template is made of, and the names it can be asked for by.

`register_template(TemplateMeta("mine", prefix="", prompt="Q: {{QUERY}}\nA:", chat_sep="\n", suffix="{{EOS}}"))`
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stages.data.templates.thinking import Thinking
from stages.errors import ArgumentsError

__all__ = ["TemplateMeta", "common_start", "find_template", "register_template", "templates"]

QUERY, SYSTEM = "{{QUERY}}", "{{SYSTEM}}"
Role = Literal["system", "user", "assistant", "tool"]
EVERY_ROLE: frozenset[Role] = frozenset(("system", "user", "assistant", "tool"))
# SWIFT writes a part as a list of texts, in which a list names a token of the tokenizer.
Part = str | Sequence[str | Sequence[str]]


@dataclass(frozen=True)
class TemplateMeta:
    """SWIFT's parts of a chat template. {{BOS}} and {{EOS}} stand for the tokenizer's tokens.

    Attributes:
        name: for `--template`.
        prefix: before a conversation without a system message.
        prompt: a question, {{QUERY}}, and what asks for the answer.
        chat_sep: between an answer and the next question; None where only one question can be asked.
        suffix: after the last answer.
        system_prefix: instead of prefix, with {{SYSTEM}}; None where there is no place for one in front.
        default_system: for conversations without one.
        stop_words: that end an answer, beside suffix.
        tool_prompt: as prompt, for what a tool returns; None for prompt.
        default_tools_prompt: how tools are written if nobody says.
        generation_prompt: the end of prompt that belongs to the answer; None for what follows chat_sep in it.
        empty_system: whether a system message without text is written.
        system_query: written in front of {{QUERY}} instead of a prefix, with {{SYSTEM}}.
        system_in: which question system_query stands in.
        trimmed: whose messages lose the white space around them.
        trims_query: system_query and the question lose it together, not the question alone.
        answer_prefix: what the model itself writes first in every answer.
        thinking: how answers with thoughts are written; None for as they are.
    """

    name: str
    prefix: Part
    prompt: Part
    chat_sep: Part | None
    suffix: Part = "{{EOS}}"
    system_prefix: Part | None = None
    default_system: str | None = None
    stop_words: Sequence[str] = ()
    tool_prompt: Part | None = None
    default_tools_prompt: str = "react_en"
    generation_prompt: str | None = None
    empty_system: bool = True
    system_query: str | None = None
    system_in: Literal["first", "last"] = "first"
    trimmed: frozenset[Role] = frozenset()
    trims_query: bool = False
    answer_prefix: str = ""
    thinking: Thinking | None = None

    def __post_init__(self) -> None:
        for name in ("prefix", "prompt", "chat_sep", "suffix", "system_prefix", "tool_prompt"):
            object.__setattr__(self, name, _joined(getattr(self, name)))
        if SYSTEM in self.text("prefix"):
            object.__setattr__(self, "system_prefix", self.prefix)
            object.__setattr__(self, "prefix", self.text("prefix").replace(SYSTEM, ""))
        for name in ("prompt", "tool_prompt"):
            if (part := getattr(self, name)) is not None and part.count(QUERY) != 1:
                raise ArgumentsError(f"template {self.name!r}: {name} has to hold {QUERY} once: {part!r}")
        if self.default_system is not None and not self.takes_system:
            raise ArgumentsError(f"template {self.name!r} has a default_system and no place for it: give system_prefix")

    @property
    def takes_system(self) -> bool:
        """Whether there is a place for a system message."""
        return self.system_prefix is not None or self.system_query is not None

    def text(self, name: str) -> str:
        """A part, empty where it is None."""
        part = getattr(self, name)
        assert part is None or isinstance(part, str), part
        return part or ""

    def asked(self, name: str = "prompt") -> tuple[str, str, str]:
        """A prompt, or a tool_prompt, in three: before the question, after it, and what asks for the answer."""
        before, _, after = (self.text(name) or self.text("prompt")).partition(QUERY)
        if self.generation_prompt is not None:
            return before, after.removesuffix(self.generation_prompt), self.generation_prompt
        sep = self.text("chat_sep") or self.text("suffix")
        closing, found, asking = after.rpartition(sep) if sep else ("", "", after)
        return (before, closing + found, asking) if found else (before, "", after)


def common_start(one: str, other: str) -> str:
    """What both texts begin with."""
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def _joined(part: Part | None) -> str | None:
    """A part of SWIFT's as one text."""
    if part is None or isinstance(part, str):
        return part
    names = {"bos_token_id": "{{BOS}}", "eos_token_id": "{{EOS}}"}
    return "".join(one if isinstance(one, str) else "".join(names[name] for name in one) for one in part)


TEMPLATES: dict[str, TemplateMeta] = {}


def register_template(meta: TemplateMeta) -> TemplateMeta:
    """Makes a template known by its name.

    Raises:
        ArgumentsError: the name is taken.
    """
    from stages.data.templates import families  # noqa: F401 - the known names are taken before a user's

    if meta.name in TEMPLATES:
        raise ArgumentsError(f"there is a template {meta.name!r} already: choose another name")
    TEMPLATES[meta.name] = meta
    return meta


def templates() -> list[TemplateMeta]:
    """All that are registered, in that order."""
    from stages.data.templates import families  # noqa: F401 - they register themselves

    return list(TEMPLATES.values())


def find_template(name: str) -> TemplateMeta:
    """The template of a name.

    Raises:
        ArgumentsError: there is none.
    """
    names = [meta.name for meta in templates()]
    if name not in names:
        close = difflib.get_close_matches(name.lower(), names, n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"Choose from: {', '.join(sorted(names))}"
        raise ArgumentsError(f"there is no template {name!r}. {hint}")
    return TEMPLATES[name]
