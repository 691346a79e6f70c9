"""How strongly each part of an answer is learnt: `LossScale.parse("last_round+react").weigh("Action: search", "")`.

A scale is a base, which says whose text is learnt at all, and any number of rules, which weigh the text of an answer;
the weights of several rules are multiplied.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from stages.data.rows.values import RowError
from stages.errors import ArgumentsError, MartletError

__all__ = ["Base", "LossScale", "Piece", "Rule", "by_keyword", "by_pattern", "loss_scales", "register_loss_scale"]

Base = Literal["default", "last_round", "all"]
# Where in the answer a piece begins and ends, and its weight.
Piece = tuple[int, int, float]
# (answer, the query before it) -> pieces that cover the answer, in order.
Rule = Callable[[str, str], Sequence[Piece]]

BASES: tuple[Base, ...] = ("default", "last_round", "all")


@dataclass(frozen=True)
class LossScale:
    """A base and its rules.

    Attributes:
        name: as the user wrote it.
        base: `default`: every answer, `last_round`: the last answer, `all`: the whole text.
        rules: each weighs an answer's text.
        binary: whether no weight but 0 and 1 can come out, so that labels say it all.
    """

    name: str
    base: Base
    rules: tuple[Rule, ...] = ()
    binary: bool = True

    @staticmethod
    def parse(name: str) -> LossScale:
        """The scale of a name, such as `default`, `react` or `last_round+hermes+ignore_empty_think`.

        Raises:
            ArgumentsError: no rule has one of the names, or a base stands behind another part.
        """
        parts = name.split("+")
        base: Base = next((one for one in BASES if one == parts[0]), "default")
        names = parts[1:] if parts[0] in BASES else parts
        for one in names:
            if one in BASES:
                raise ArgumentsError(f"`--loss_scale {name}`: {one} comes first, as in {one}+react, and only once")
            if one not in RULES:
                close = difflib.get_close_matches(one, loss_scales(), n=3)
                choices = f"Did you mean {' or '.join(close)}?" if close else f"Choose from: {', '.join(loss_scales())}"
                raise ArgumentsError(f"`--loss_scale {name}`: there is no loss scale {one!r}. {choices}")
        found = [RULES[one] for one in names]
        return LossScale(name, base, tuple(rule for rule, _ in found), all(binary for _, binary in found))

    @property
    def plain(self) -> bool:
        """Whether an answer has one weight, 1."""
        return not self.rules

    def weigh(self, content: str, query: str) -> list[Piece]:
        """The pieces of an answer with their weights; together they cover it.

        Args:
            content: the answer as the template writes it.
            query: what the user, or a tool, said before it.
        """
        if not content:
            return []
        if not self.rules:
            return [(0, len(content), 1.0)]
        pieces = list(self.rules[0](content, query))
        for rule in self.rules[1:]:
            pieces = _product(pieces, rule(content, query))
        return _merged(pieces)


def register_loss_scale(name: str, rule: Rule, *, binary: bool = False) -> None:
    """Makes a rule known by a name.

    Args:
        name: what `--loss_scale` takes; no plus sign.
        rule: takes an answer and the query before it, gives pieces that cover the answer.
        binary: whether its weights are 0 and 1 only.

    Raises:
        ArgumentsError: the name is taken, or cannot be one.
    """
    if name in RULES or name in BASES:
        raise ArgumentsError(f"there is a loss scale {name!r} already: choose another name")
    if "+" in name or not name:
        raise ArgumentsError(f"a loss scale cannot be called {name!r}: a plus sign joins names")
    RULES[name] = (_checked(name, rule), binary)


def _checked(name: str, rule: Rule) -> Rule:
    """A user's rule, whose mistakes are a row's."""

    def checked(content: str, query: str) -> Sequence[Piece]:
        try:
            pieces = [(int(start), int(end), float(weight)) for start, end, weight in rule(content, query)]
        except MartletError:
            raise
        except Exception as error:
            raise RowError(f"the loss scale {name} fails: {type(error).__name__}: {error}", "plugin") from error
        borders = [0, *(end for _, end, _ in pieces)]
        for border, (start, end, weight) in zip(borders, pieces, strict=False):
            if not (start == border <= end and 0 <= weight < math.inf):
                raise RowError(
                    f"the loss scale {name} gives {(start, end, weight)} after {border} characters", "plugin"
                )
        if borders[-1] != len(content):
            raise RowError(f"the loss scale {name} ends at {borders[-1]} of {len(content)} characters", "plugin")
        return pieces

    return checked


def loss_scales() -> list[str]:
    """The names that `--loss_scale` takes, alone or joined."""
    return [*BASES, *RULES]


def by_keyword(weights: Mapping[str, tuple[float, float]], queries: Mapping[str, float] | None = None) -> Rule:
    """A rule that weighs keywords and what follows each up to the next.

    Args:
        weights: keyword to (its own weight, that of the text after it); text before the first weighs 1.
        queries: where the query contains such a text, the whole answer has this weight.
    """
    keywords = re.compile("|".join(re.escape(keyword) for keyword in weights))

    def rule(content: str, query: str) -> list[Piece]:
        for part, weight in (queries or {}).items():
            if part in query:
                return [(0, len(content), weight)]
        matches = list(keywords.finditer(content))
        ends = [*(match.start() for match in matches), len(content)]
        pieces = [(0, ends[0], 1.0)]
        for match, end in zip(matches, ends[1:], strict=True):
            own, after = weights[match.group()]
            pieces += [(match.start(), match.end(), own), (match.end(), end, after)]
        return [piece for piece in pieces if piece[0] < piece[1]]

    return rule


def by_pattern(weights: Mapping[str, float]) -> Rule:
    """A rule that weighs what regular expressions match (dot matches newlines, ^ the beginning); the rest weighs 1."""
    compiled = {re.compile(pattern, re.DOTALL): weight for pattern, weight in weights.items()}

    def rule(content: str, query: str) -> list[Piece]:
        pieces = [(0, len(content), 1.0)]
        for pattern, weight in compiled.items():
            cuts = [(match.start(), match.end(), weight) for match in pattern.finditer(content) if match.group()]
            pieces = _product(pieces, _filled(cuts, len(content)))
        return pieces

    return rule


def _filled(cuts: Sequence[Piece], end: int) -> list[Piece]:
    """The pieces, and ones of weight 1 between them."""
    pieces, position = [], 0
    for start, stop, weight in cuts:
        pieces += [(position, start, 1.0), (start, stop, weight)]
        position = stop
    return [piece for piece in [*pieces, (position, end, 1.0)] if piece[0] < piece[1]]


def _product(one: Sequence[Piece], other: Sequence[Piece]) -> list[Piece]:
    """Both cut where either is cut, the weights multiplied."""
    borders = sorted({border for start, end, _ in (*one, *other) for border in (start, end)})
    return [(a, b, _weight_at(one, a) * _weight_at(other, a)) for a, b in pairwise(borders)]


def _weight_at(pieces: Sequence[Piece], position: int) -> float:
    return next((weight for start, end, weight in pieces if start <= position < end), 1.0)


def _merged(pieces: Sequence[Piece]) -> list[Piece]:
    merged: list[Piece] = []
    for start, end, weight in pieces:
        if merged and merged[-1][2] == weight and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], end, weight)
        else:
            merged.append((start, end, weight))
    return merged


REACT = {
    "Action:": (2.0, 2.0),
    "Action Input:": (2.0, 2.0),
    "Thought:": (1.0, 1.0),
    "Final Answer:": (1.0, 1.0),
    "Observation:": (2.0, 0.0),
}
AGENTFLAN = {
    "Name:": (1.0, 3.0),
    "Action:": (1.0, 3.0),
    "ACTION:": (1.0, 3.0),
    "Tool:": (1.0, 3.0),
    "Command": (1.0, 3.0),
    "Arguments:": (1.0, 3.0),
    "action input": (1.0, 3.0),
    "ACTION_INPUT:": (1.0, 3.0),
    "Action Input:": (1.0, 3.0),
    "Thought:": (1.0, 1.0),
    "Final Answer:": (1.0, 1.0),
    "Observation:": (2.0, 0.0),
}
AGENTFLAN_QUERIES = {
    "What is the tool you want to use": 3.0,
    "What are the required parameter names": 3.0,
    "What is the value of": 3.0,
}
QWEN = {
    "✿FUNCTION✿:": (2.0, 2.0),
    "✿ARGS✿:": (2.0, 2.0),
    "✿RETURN✿:": (1.0, 1.0),
    "✿RESULT✿:": (2.0, 0.0),
}

RULES: dict[str, tuple[Rule, bool]] = {
    "react": (by_keyword(REACT), False),
    "agentflan": (by_keyword(AGENTFLAN, AGENTFLAN_QUERIES), False),
    "alpha_umi": (by_keyword({**REACT, "Next:": (2.0, 2.0)}), False),
    "hermes": (by_pattern({"<tool_call>.+?</tool_call>": 2.0}), False),
    "qwen": (by_keyword(QWEN), False),
    "ignore_empty_think": (by_pattern({r"^<think>\s*</think>\s*": 0.0}), True),
    "ignore_think_prefix": (by_pattern({r"^<think>\n?": 0.0}), True),
}
