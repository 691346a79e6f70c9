"""Which column of a row means what: `plan_columns(("instruction", "input", "output"), {})` is an alpaca row's plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stages.data.rows.values import Kind, RowError, quoted

__all__ = ["COLUMNS", "MEDIA", "Plan", "plan_columns"]

AMBIGUOUS: Kind = "ambiguous columns"
CONVERSATIONS = ("messages", "conversations", "conversation")

# SWIFT's names for each standard column; the standard name itself comes first.
COLUMNS: dict[str, tuple[str, ...]] = {
    "query": ("query", "prompt", "input", "instruction", "question"),
    "response": (
        "response", "answer", "output", "targets", "target", "answer_key", "solution", "answers", "text", "completion",
        "content",
    ),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "rejected_response": ("rejected_response",),
    "rejected_messages": ("rejected_messages",),
    "label": ("label",),
    "tools": ("tools",),
    "objects": ("objects",),
    "images": ("images", "image"),
    "videos": ("videos", "video"),
    "audios": ("audios", "audio"),
}  # fmt: skip
MEDIA = ("images", "videos", "audios")
TARGETS = {name: target for target, names in COLUMNS.items() for name in names}
PAIRS = (("chosen", "rejected"), ("chosen_messages", "rejected_messages"))


@dataclass(frozen=True)
class Plan:
    """How rows with a given set of columns are read: the row's column for each purpose, None where it has none.

    Attributes:
        format: what the columns look like.
        conversation: the turns, of the format messages.
        query: of the formats query and alpaca; the instruction of the latter.
        input: what alpaca adds to the instruction.
        response: the answer.
        chosen: the better answer, where a column for the worse one is beside it.
        rejected: the worse answer.
        system: the system message.
        history: earlier turns.
        others: the standard columns that later stages read, and the row's columns for them.
        has_media: whether one of these is images, videos or audios.
    """

    format: Literal["messages", "alpaca", "query"]
    conversation: str | None = None
    query: str | None = None
    input: str | None = None
    response: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    system: str | None = None
    history: str | None = None
    others: tuple[tuple[str, str], ...] = ()
    has_media: bool = False


def plan_columns(columns: Sequence[str], renamed: Mapping[str, str]) -> Plan:
    """Finds out what a row's columns mean, by their names.

    Args:
        columns: the row's.
        renamed: the user's word for some of them, in lower case; it goes before everything else.

    Raises:
        RowError: two columns mean the same.
    """
    names = {column: renamed.get(column.lower(), column).lower() for column in columns}
    told = {_meaning(name) for column, name in names.items() if column.lower() in renamed}
    for column in [column for column in columns if column.lower() not in renamed]:
        if _meaning(names[column]) in told:
            del names[column]  # the user named another column for this
    by_name = {name: column for column, name in names.items()}
    chosen, rejected = next(((by_name[a], by_name[b]) for a, b in PAIRS if a in by_name and b in by_name), (None, None))
    known = {column: name for column, name in names.items() if name in TARGETS and column != rejected}
    conversations = [column for column, name in names.items() if name in CONVERSATIONS]
    if len(conversations) > 1:
        raise RowError(f"columns {quoted(conversations)} all are conversations: drop all but one", AMBIGUOUS)
    if conversations:
        unused = ("query", "response", "history")
        found = _targets({column: name for column, name in known.items() if TARGETS[name] not in unused})
        return _plan("messages", found, conversation=conversations[0], chosen=chosen, rejected=rejected)
    if "instruction" in by_name and "input" in by_name:
        questions = [column for column, name in known.items() if name in ("instruction", "input")]
        if len(questions) > 2:
            raise RowError(f"columns {quoted(questions)} all are part of the question: drop all but two", AMBIGUOUS)
        rest = {column: name for column, name in known.items() if TARGETS[name] != "query"}
        if "output" in by_name:
            rest = {c: name for c, name in rest.items() if TARGETS[name] != "response" or name == "output"}
        found = {**_targets(rest), "query": by_name["instruction"]}
        return _plan("alpaca", found, input=by_name["input"], chosen=chosen, rejected=rejected)
    return _plan("query", _targets(known), chosen=chosen, rejected=rejected)


def _meaning(name: str) -> str:
    return TARGETS.get(name, name)


def _plan(
    kind: Literal["messages", "alpaca", "query"],
    found: Mapping[str, str],
    *,
    chosen: str | None,
    rejected: str | None,
    conversation: str | None = None,
    input: str | None = None,
) -> Plan:
    if chosen is not None and "response" in found:
        both = [found["response"], chosen]
        raise RowError(f"columns {quoted(both)} both are the answer: drop one of them", AMBIGUOUS)
    parts = ("query", "response", "system", "history")
    others = tuple((target, column) for target, column in found.items() if target not in parts)
    return Plan(
        format=kind,
        conversation=conversation,
        input=input,
        chosen=chosen,
        rejected=rejected,
        others=others,
        has_media=any(target in MEDIA for target, _ in others),
        **{part: found.get(part) for part in parts},
    )


def _targets(known: Mapping[str, str]) -> dict[str, str]:
    """Standard names to the row's columns.

    Raises:
        RowError: two columns mean the same: a guess would train the wrong one.
    """
    found: dict[str, list[str]] = {}
    for column, name in known.items():
        found.setdefault(TARGETS[name], []).append(column)
    for target, columns in found.items():
        if len(columns) > 1:
            raise RowError(f"columns {quoted(columns)} all mean {target}: rename or drop all but one", AMBIGUOUS)
    return {target: columns[0] for target, columns in found.items()}
