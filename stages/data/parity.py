"""Checks that a model is trained on the text that it is served: `ParityCheck(template, exported).check(row)`.

The prompt that a row trains, all before its last answer, has to be byte for byte what the exported chat template
gives with `add_generation_prompt`.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any

from stages.data.chat_template import ChatTemplate, TemplateFailed
from stages.data.rows import RowError
from stages.data.templates.conversation import CALL_FORMS, served_prompt
from stages.data.templates.rendered import Template
from stages.errors import DataError

__all__ = ["ParityCheck"]

ROWS_OF_A_SHAPE = 4
ROWS_A_SAMPLE = 50
WIDTH = 60


class ParityCheck:
    """Compares a sample of rows: the first of every shape, and one in fifty.

    Attributes:
        num_checked: rows that were compared.
    """

    def __init__(self, template: Template, exported: ChatTemplate) -> None:
        """Compares nothing yet.

        Args:
            template: writes the rows for training.
            exported: the chat template that the trained model will carry.
        """
        self._template = template
        self._exported = exported
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._num_rows = 0
        self.num_checked = 0

    def check(self, row: Mapping[str, Any], where: str | None = None) -> bool:
        """Compares a row, if it is one of the sample; rows without an answer, or that the
        template itself refuses, are none.

        Args:
            row: a standard one.
            where: names it in the message; its number in the order of calls, if left out.

        Returns:
            Whether it was compared.

        Raises:
            DataError: the two texts differ.
        """
        self._num_rows += 1
        if row["messages"][-1]["role"] != "assistant":  # a row to be classified: no answer is asked for
            return False
        shape = _shape(row)
        self._seen[shape] += 1
        if self._seen[shape] > ROWS_OF_A_SHAPE and self._num_rows % ROWS_A_SAMPLE:
            return False
        try:
            prompt = self._template.prompt(row)
            trained = self._template.render(row).text
        except RowError:
            return False
        self.num_checked += 1
        where = where or f"row {self._num_rows}"
        if not trained.startswith(prompt):
            raise DataError(_difference(where, "training", trained[: len(prompt)], "its own prompt", prompt))
        served = self._served(row, prompt)
        if served != prompt:
            raise DataError(_difference(where, "training", prompt, "serving", served))
        return True

    def _served(self, row: Mapping[str, Any], prompt: str) -> str:
        """What the exported template gives; calls in the form that it takes."""
        called = any(message.get("tool_calls") for message in row["messages"])
        served = ""
        for form in CALL_FORMS if called else CALL_FORMS[:1]:
            try:
                served = served_prompt(self._exported, row, form)
            except TemplateFailed as error:
                served = f"(refused: {error})"
            if served == prompt:
                break
        return served


def _shape(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What may make a template write a row in another way."""
    messages = row["messages"]
    marks = [_mark(message, message["content"] or "") for message in messages]
    # Of a long conversation the ends and what kinds of turns there are between them.
    shown = marks if len(marks) <= 4 else [*marks[:2], *sorted(set(marks[2:-2])), *marks[-2:]]
    return (bool(row.get("tools")), *shown)


def _mark(message: Mapping[str, Any], content: str) -> tuple[Any, ...]:
    thinks = "<think>" in content or "</think>" in content
    spaces = content[:1].isspace(), content[-1:].isspace()
    return (message["role"], not content, *spaces, thinks, bool(message.get("tool_calls")))


def _difference(where: str, one: str, first: str, other: str, second: str) -> str:
    """Both texts around the first place where they differ, one above the other, and a mark under that place."""
    at = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    begin = max(at - WIDTH // 2, 0)
    before, names = _columns(repr(first[begin:at])[1:-1]), max(len(one), len(other))
    lines = [f"  {name:<{names}}  {_shown(text, begin, at)}" for name, text in ((one, first), (other, second))]
    mark = " " * (names + 4 + bool(begin) + before) + "^"
    return "\n".join(
        [
            f"{where}: the text in {one} differs from that in {other} from character {at} on",
            *lines,
            mark,
            "  Name a template with `--template`, or report this row as a bug of Martlet's.",
        ]
    )


def _columns(text: str) -> int:
    """How wide a terminal shows a text."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _shown(text: str, begin: int, at: int) -> str:
    end = at + WIDTH // 2
    shown = repr(text[begin:at])[1:-1] + repr(text[at:end])[1:-1]
    return f"{'…' if begin else ''}{shown}{'…' if end < len(text) else ''}{'' if at < len(text) else ' (ends here)'}"
