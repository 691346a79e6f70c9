r"""How models that think write an answer: without the thought of an earlier turn, with that of the last one.

`QWEN3.write("<think>\nhm\n</think>\n\nSeven.", False, True)`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["QWEN3", "R1", "Thinking"]


@dataclass(frozen=True)
class Thinking:
    """One way, in Python and in Jinja.

    Attributes:
        write: (answer, whether a question follows it, whether it is the last message) -> what is written.
        jinja: the same as Jinja that writes; it is given `content`, `past` and `last`.
        opens: ends the prompt for the last answer, and only that.
    """

    write: Callable[[str, bool, bool], str]
    jinja: str
    opens: str = ""


def _qwen3(content: str, past: bool, last: bool) -> str:
    thought = ""
    if "</think>" in content:
        thought = content.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
        content = content.split("</think>")[-1].lstrip("\n")
    if past or not (last or thought):
        return content
    stripped = thought.strip("\n")
    return f"<think>\n{stripped}\n</think>\n\n" + content.lstrip("\n")


QWEN3 = Thinking(
    _qwen3,
    r"""{%- set thought = '' %}
{%- if '</think>' in content %}
{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{%- if past or not (last or thought) %}{{- content }}
{%- else %}{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
{%- endif %}""",
)


def _r1(content: str, past: bool, last: bool) -> str:
    if not last:
        return content.split("</think>")[-1]
    if "</think>" in content:
        return content.removeprefix("<think>").removeprefix("\n")
    return f"\n</think>\n\n{content}"


# The prompt ends with an opened thought, which the answer goes on with; an answer without one closes it at once.
R1 = Thinking(
    _r1,
    r"""{%- if not last %}{{- content.split('</think>')[-1] }}
{%- elif '</think>' not in content %}{{- '\n</think>\n\n' + content }}
{%- else %}
{%- if content.startswith('<think>') %}{%- set content = content[7:] %}{%- endif %}
{%- if content.startswith('\n') %}{%- set content = content[1:] %}{%- endif %}
{{- content }}
{%- endif %}""",
    "<think>\n",
)
