"""Writes a registered template as the Jinja that a tokenizer carries: `jinja_of(native)`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from stages.data.templates.meta import TemplateMeta
from stages.data.templates.tools import ToolsPrompt

if TYPE_CHECKING:
    from stages.data.templates.native import NativeTemplate

__all__ = ["jinja_of", "with_system"]

PLACEHOLDER = re.compile(r"(\{\{[A-Z]+\}\})")

# Content is text, or a list of parts of which those of type text are read.
SAID = r"""{%- macro said(turn) %}
{%- if turn.content is string %}{{- turn.content }}
{%- elif turn.content %}
{%- for part in turn.content %}{{- part.text if part.type == 'text' else '' }}{%- endfor %}
{%- endif %}
{%- endmacro %}
"""

START = r"""{%- set state = namespace(system=DEFAULT, open=false, last_user=-1, first_user=-1) %}
{%- set turns = messages %}
{%- if messages and messages[0].role == 'system' %}
{%- set state.system = said(messages[0]) %}
{%- set turns = messages[1:] %}
{%- endif %}
{%- for turn in turns %}
{%- if turn.role == 'user' %}
{%- set state.last_user = loop.index0 %}
{%- if state.first_user < 0 %}{%- set state.first_user = loop.index0 %}{%- endif %}
{%- endif %}
{%- endfor %}
"""

TURNS = r"""{{- begin(state.system) }}
{%- for turn in turns %}
{%- set before = turns[loop.index0 - 1].role if not loop.first else none %}
{%- set after = turns[loop.index0 + 1].role if not loop.last else none %}
{%- if turn.role == 'assistant' %}
{%- set written = answer(turn, state.open or loop.index0 < state.last_user, loop.last and not state.open) %}
{%- if not state.open %}{{- asking(before, loop.last) }}{{- PREFIX }}{%- endif %}
{{- written }}
{%- set state.open = after == 'tool' and OBSERVATION != '' and written.endswith(OBSERVATION) %}
{%- if not state.open %}{{- SUFFIX if loop.last else SEP }}{%- endif %}
{%- elif turn.role == 'tool' and state.open %}
{%- if before == 'tool' %}
{{- '' if said(turns[loop.index0 - 1]).endswith('\n') else '\n' }}{{- OBSERVATION }}
{%- endif %}
{{- said(turn) }}
{%- elif turn.role == 'tool' %}
RESULT{%- elif turn.role == 'user' %}
{{- BEFORE }}{{- query(turn, state.system if loop.index0 == state.SYSTEM_AT else none) }}{{- AFTER }}
{%- else %}
{{- raise_exception('NAME writes turns of user, assistant and tool after a system message, not of ' ~ turn.role) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt and not state.open %}{{- asking(turns[-1].role if turns else none, true) }}{%- endif %}
"""

# What tools return, as a question that a run of them shares, or each in a turn of its own.
SHARED = r"""{{- '\n' if before == 'tool' else BEFORE }}RESULT_TEXT{{- AFTER if after != 'tool' else '' }}
"""
ALONE = r"""{{- TOOL_BEFORE }}RESULT_TEXT{{- TOOL_AFTER }}
"""


def jinja_of(native: NativeTemplate) -> str:
    """The template, with its default system message and its tools prompt."""
    meta, tools = native.meta, native.tools_prompt
    before, after, asking = meta.asked()
    tool_before, tool_after, tool_asking = meta.asked("tool_prompt")
    result = _written(tools.result or "{{RESULT}}", {"RESULT": _trim("said(turn)", "tool" in meta.trimmed)})
    words = {
        "DEFAULT": "none" if native.system is None else _quote(native.system),
        "OBSERVATION": _quote(tools.observation),
        "PREFIX": _quote(meta.answer_prefix),
        "SUFFIX": _text(meta.text("suffix")),
        "SEP": _text(meta.text("chat_sep")),
        "BEFORE": _text(before),
        "AFTER": _text(after),
        "TOOL_BEFORE": _text(tool_before),
        "TOOL_AFTER": _text(tool_after),
        "RESULT_TEXT": result,
        "SYSTEM_AT": f"{meta.system_in}_user",
        "NAME": native.name,
    }
    turns = TURNS.replace("RESULT{%-", (ALONE if tools.result is None else SHARED) + "{%-")
    named = re.compile(r"\b(" + "|".join(words) + r")\b")
    start, turns = (named.sub(lambda match: words[match.group()], part) for part in (START, turns))
    own_asking = tool_asking != asking and tools.result is None
    macros = [SAID, _begin(meta, native.name), _query(meta), _answer(meta, tools)]
    macros.append(_asking(meta, asking, tool_asking if own_asking else asking))
    return "".join([*macros, start, _tools(tools), turns]).rstrip("\n")


def with_system(jinja: str, system: str, *, in_parts: bool = False) -> str:
    """A template that puts a system message in front of conversations without one.

    Args:
        jinja: the template.
        system: the message.
        in_parts: whether the template reads it as a list of parts, as those of models that see may.
    """
    content = f"[{{'type': 'text', 'text': {_quote(system)}}}]" if in_parts else _quote(system)
    turn = f"{{'role': 'system', 'content': {content}}}"
    return (
        "{%- if not messages or messages[0]['role'] != 'system' %}\n"
        f"{{%- set messages = [{turn}] + (messages | list) %}}\n"
        "{%- endif %}\n" + jinja
    )


def _begin(meta: TemplateMeta, name: str) -> str:
    written = _text(meta.text("prefix"))
    refused = ""
    if not meta.takes_system:
        refused = _quote(f"{name} has no place for a system message")
        refused = f"{{%- if system is not none %}}{{{{- raise_exception({refused}) }}}}{{%- endif %}}"
    elif meta.system_query is None:
        system = _text(meta.text("system_prefix"), {"SYSTEM": _trim("system", "system" in meta.trimmed)})
        none = "system is none" if meta.empty_system else "not system"
        written = f"{written} if {none} else {system}"
    return f"{{%- macro begin(system) %}}{refused}{{{{- {written} }}}}{{%- endmacro %}}\n"


def _query(meta: TemplateMeta) -> str:
    query = _trim("said(turn)", "user" in meta.trimmed)
    written = f"{{{{- {query} }}}}"
    if meta.system_query is not None:
        system = _text(meta.system_query, {"SYSTEM": "system"})
        both = f"({system} ~ said(turn)) | trim" if meta.trims_query else f"{system} ~ ({query})"
        written = f"{{%- if system is none %}}{written}\n{{%- else %}}{{{{- {both} }}}}\n{{%- endif %}}"
    return f"{{%- macro query(turn, system) %}}{written}{{%- endmacro %}}\n"


def _answer(meta: TemplateMeta, tools: ToolsPrompt) -> str:
    content = _trim("said(turn)", "assistant" in meta.trimmed)
    macros = ""
    if meta.thinking is not None:
        macros = f"{{%- macro thought(content, past, last) %}}\n{meta.thinking.jinja}\n{{%- endmacro %}}\n"
        content = f"thought({content}, past, last)"
    arguments = "call.arguments if call.arguments is string else call.arguments | tojson"
    ends = tools.line_ends(meta.thinking is not None)
    ended = f" and not content.endswith({_quote(ends)})" if ends else ""
    call = _written(tools.call, {"NAME": "call.name", "ARGUMENTS": f"({arguments})"})
    return (
        f"{macros}{{%- macro answer(turn, past, last) %}}\n"
        f"{{%- set content = {content} %}}\n"
        "{{- content }}\n"
        "{%- if turn.tool_calls %}\n"
        f"{{{{- '\\n' if content{ended} else '' }}}}\n"
        "{%- for one in turn.tool_calls %}\n"
        "{%- set call = one.function if one.function is defined else one %}\n"
        f"{call}{{{{- '' if loop.last else {_quote(tools.between_calls)} }}}}\n"
        "{%- endfor %}\n"
        f"{{{{- {_quote(tools.after_calls)} }}}}\n"
        "{%- endif %}\n"
        "{%- endmacro %}\n"
    )


def _asking(meta: TemplateMeta, asking: str, tool_asking: str) -> str:
    opens = meta.thinking.opens if meta.thinking is not None else ""
    written = _text(asking)
    if tool_asking != asking:
        written = f"{_text(tool_asking)} if role == 'tool' else {written}"
    last = f"{{{{- {_quote(opens)} if last else '' }}}}" if opens else ""
    return f"{{%- macro asking(role, last) %}}{{{{- {written} }}}}{last}{{%- endmacro %}}\n"


def _tools(tools: ToolsPrompt) -> str:
    """What turns `tools` into the system message."""
    values = {
        "NAME": "tool.name",
        "TOOL": "tool",
        "JSON": "(one if one.function is defined else {'type': 'function', 'function': one}) | tojson",
        "DESCRIPTION": "(tool.description if tool.description is defined else '')",
        "PARAMETERS": "(tool.parameters if tool.parameters is defined else {}) | tojson",
    }
    loop = "{%- for one in tools %}\n{%- set tool = one.function if one.function is defined else one %}\n"
    end = "{{{{- '' if loop.last else {} }}}}\n{{%- endfor %}}\n"
    described = f"{loop}{_written(tools.tool, values)}{end.format(_quote(tools.between))}"
    names = f"{loop}{{{{- tool.name }}}}{end.format(_quote(','))}"
    text = "".join(
        {"{{TOOLS}}": described, "{{NAMES}}": names}.get(part) or f"{{{{- {_quote(part)} }}}}\n"
        for part in PLACEHOLDER.split(tools.text)
        if part
    )
    kept = "{{- state.system ~ '\\n\\n' if state.system is not none else '' }}\n" if tools.keeps_system else ""
    return (
        "{%- if tools %}\n"
        f"{{%- set described %}}\n{kept}{text}{{%- endset %}}\n"
        "{%- set state.system = described %}\n"
        "{%- endif %}\n"
    )


def _written(text: str, values: Mapping[str, str]) -> str:
    """Jinja that writes a text with placeholders."""
    return f"{{{{- {_text(text, values)} }}}}"


def _text(text: str, values: Mapping[str, str] | None = None) -> str:
    """An expression for a text with placeholders."""
    known = {"BOS": "bos_token", "EOS": "eos_token", **(values or {})}
    parts = [part for part in PLACEHOLDER.split(text) if part]
    named = [known.get(part.strip("{}")) if PLACEHOLDER.fullmatch(part) else None for part in parts]
    found = [f"({name})" if name else _quote(part) for part, name in zip(parts, named, strict=True)]
    return f"({' ~ '.join(found)})" if found else "''"


def _trim(expression: str, trimmed: bool) -> str:
    return f"{expression} | trim" if trimmed else expression


def _quote(text: str) -> str:
    """Text as a literal of Jinja."""
    return json.dumps(text, ensure_ascii=False)
