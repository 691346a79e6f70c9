"""What SWIFT has and Martlet does not act upon yet: refused, never ignored. Later work empties this list.

`refuse_unsupported({"use_galore": True}, "sft")` raises `--use_galore is not supported yet`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from stages.arguments.message import shorten

__all__ = ["UNSUPPORTED", "UNSUPPORTED_COMMANDS", "Unsupported", "applies", "refuse_unsupported", "unsupported_values"]


class Unsupported(NamedTuple):
    """Which uses of a parameter are refused.

    Attributes:
        values: a regular expression for the values concerned; empty means every value but the default.
        only: the stages and commands concerned; empty means all.
        note: what `--help` calls these values, where the field's type does not list them.
    """

    values: str = ""
    only: tuple[str, ...] = ()
    note: str = ""


# The parameters that these commands alone have are refused with the command.
UNSUPPORTED_COMMANDS = ("pt", "rlhf", "infer", "deploy", "eval")

_NAMES_ALWAYS = """
model_type local_repo_path
stream
hub_token hub_strategy hub_always_push hub_revision
"""

# Nothing is generated there.
_NAMES_GENERATION = "max_new_tokens temperature top_k top_p repetition_penalty num_beams stop_words"

# Pushing from the trainer.
_NAMES_SFT = """
push_to_hub hub_model_id hub_private_repo commit_message
"""

UNSUPPORTED: dict[str, tuple[Unsupported, ...]] = {
    **dict.fromkeys(_NAMES_ALWAYS.split(), (Unsupported(),)),
    **dict.fromkeys(_NAMES_GENERATION.split(), (Unsupported(only=("export",)),)),
    **dict.fromkeys(_NAMES_SFT.split(), (Unsupported(only=("sft",)),)),
    "quant_method": (Unsupported("awq"),),
    "eval_dataset": (Unsupported("(?!general_(qa|mcq):).*", note="other benchmarks"),),
}
"""Which parameters, and which of their values, are refused where."""


def applies(rule: Unsupported, scope: str) -> bool:
    """Whether a rule concerns a stage or command."""
    return scope not in UNSUPPORTED_COMMANDS and (not rule.only or scope in rule.only)


def unsupported_values(name: str, value: object, scope: str) -> list[object] | None:
    """What of `value` is not acted upon yet by `scope` (a stage or command), one by one; None if nothing is refused.

    An empty list stands for the parameter as such, whatever its value.
    """
    values = value if isinstance(value, list) else [value]
    for rule in UNSUPPORTED.get(name, ()):
        if not applies(rule, scope):
            continue
        refused = [one for one in values if rule.values and re.fullmatch(rule.values, str(one))]
        if refused or not rule.values:
            return refused
    return None


def refuse_unsupported(given: Mapping[str, object], scope: str) -> None:
    """Refuses what differs from its default and is not acted upon yet.

    Raises:
        ValueError: naming the flag, and the value where other values work.
    """
    for name, value in given.items():
        refused = unsupported_values(name, value, scope)
        if refused is not None:
            raise ValueError(f"--{name}{f' {shorten(refused)}' if refused else ''} is not supported yet")
