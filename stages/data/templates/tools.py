"""How tools, calls and what a tool returns are written: `find_tools_prompt("react_en").system(tools, None)`.

The wordings are those of ms-swift 3.0.0 (react_en, react_zh, glm4, toolbench, custom), and of its later releases
(hermes, which Qwen's own templates use, and qwen).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from stages.data.rows import RowError
from stages.data.templates.wordings import CUSTOM, GLM4, HERMES, QWEN, REACT_EN, REACT_ZH, TOOLBENCH
from stages.errors import ArgumentsError

__all__ = ["ToolsPrompt", "find_tools_prompt", "parse_calls", "parse_tools", "register_tools_prompt", "to_json"]

OBSERVATION = "Observation:"


@dataclass(frozen=True)
class ToolsPrompt:
    """One way to write tools.

    Attributes:
        name: for `--tools_prompt`.
        text: the system message; {{TOOLS}} and {{NAMES}} are filled in.
        tool: one tool; {{TOOL}} (as Python writes it), {{JSON}} (with its type), {{NAME}}, {{DESCRIPTION}} and
            {{PARAMETERS}} are filled in.
        between: two tools.
        keeps_system: the row's own system message stays in front; else it gives way.
        call: one call; {{NAME}} and {{ARGUMENTS}} are filled in.
        after_calls: behind the last call.
        own_line: calls begin a new line even where the text before them ends with one.
        result: what a tool returns, {{RESULT}}, as part of a question; None for a turn of its own.
        observation: where an answer ends with it, what the tool returns goes on in the same turn; empty for never.
    """

    name: str
    text: str
    tool: str = "{{TOOL}}"
    between: str = "\n\n"
    keeps_system: bool = False
    call: str = "Action: {{NAME}}\nAction Input: {{ARGUMENTS}}\n"
    between_calls: str = ""
    after_calls: str = OBSERVATION
    own_line: bool = False
    result: str | None = None
    observation: str = OBSERVATION

    def system(self, tools: Sequence[Mapping[str, Any]], system: str | None) -> str:
        """The system message that says which tools there are."""
        described = self.between.join(self._describe(tool) for tool in tools)
        names = ",".join(_function(tool)["name"] for tool in tools)
        text = _filled(self.text, {"{{TOOLS}}": described, "{{NAMES}}": names})
        return f"{system}\n\n{text}" if self.keeps_system and system is not None else text

    def calls(self, content: str, calls: Sequence[Mapping[str, Any]], *, thinks: bool = False) -> str:
        """An answer with its calls; with `thinks`, a thought that nothing follows is no text before them."""
        written = self.between_calls.join(
            _filled(self.call, {"{{NAME}}": call["name"], "{{ARGUMENTS}}": _arguments(call["arguments"])})
            for call in calls
        )
        ends = self.line_ends(thinks)
        between = "\n" if content and not (ends and content.endswith(ends)) else ""
        return f"{content}{between}{written}{self.after_calls}"

    def line_ends(self, thinks: bool) -> str:
        """What text ends with that needs no new line behind it; empty for none."""
        return ("</think>\n\n" if thinks else "") if self.own_line else "\n"

    def _describe(self, tool: Mapping[str, Any]) -> str:
        function = _function(tool)
        values = {
            "{{NAME}}": function["name"],
            "{{TOOL}}": str(function),
            "{{JSON}}": to_json(tool if "function" in tool else {"type": "function", "function": tool}),
            "{{DESCRIPTION}}": str(function.get("description", "")),
            "{{PARAMETERS}}": to_json(function.get("parameters", {})),
        }
        return _filled(self.tool, values)


def _filled(text: str, values: Mapping[str, str]) -> str:
    """Placeholders are replaced from left to right, once each, so that a value may look like one."""
    done = ""
    while found := [(text.index(name), name) for name in values if name in text]:
        position, name = min(found)
        done += text[:position] + values[name]
        text = text[position + len(name) :]
    return done + text


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function: Mapping[str, Any] = tool.get("function", tool)
    return function


def _arguments(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else to_json(arguments)


def to_json(value: Any) -> str:
    """As the filter `tojson` of chat templates writes it."""
    return json.dumps(value, ensure_ascii=False)


def parse_tools(text: str) -> list[dict[str, Any]]:
    """A row's tools.

    Raises:
        RowError: it is not JSON, or not a list of tools with names.
    """
    tools = _parse(text, "tools")
    for number, tool in enumerate(tools, start=1):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError(f"tool {number} has no name: {tool!s:.80}")
    return tools


def parse_calls(text: str | Sequence[Any]) -> list[dict[str, Any]]:
    """The calls of an assistant's turn, as {name, arguments}; arguments are an object where they can be.

    Raises:
        RowError: it is not JSON, or not a list of calls with names.
    """
    calls = []
    for number, call in enumerate(_parse(text, "tool_calls"), start=1):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError(f"call {number} of tool_calls has no name: {call!s:.80}")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            with suppress(ValueError):
                arguments = json.loads(arguments)
        calls.append({"name": function["name"], "arguments": arguments})
    return calls


def _parse(text: str | Sequence[Any], what: str) -> list[Any]:
    try:
        value = json.loads(text) if isinstance(text, str) else list(text)
    except ValueError as error:
        raise RowError(f"{what} are not JSON: {error}") from None
    if not isinstance(value, list):
        raise RowError(f"{what} are a list, not {value!s:.80}")
    return value


TOOLS_PROMPTS: dict[str, ToolsPrompt] = {}


def register_tools_prompt(prompt: ToolsPrompt) -> None:
    """Makes it known by its name.

    Raises:
        ArgumentsError: the name is taken.
    """
    if prompt.name in TOOLS_PROMPTS:
        raise ArgumentsError(f"there is a tools_prompt {prompt.name!r} already: choose another name")
    TOOLS_PROMPTS[prompt.name] = prompt


def find_tools_prompt(name: str) -> ToolsPrompt:
    """The one of a name.

    Raises:
        ArgumentsError: there is none.
    """
    if name not in TOOLS_PROMPTS:
        close = difflib.get_close_matches(name, TOOLS_PROMPTS, n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"Choose from: {', '.join(TOOLS_PROMPTS)}"
        raise ArgumentsError(f"`--tools_prompt {name}`: there is none of this name. {hint}")
    return TOOLS_PROMPTS[name]


NAMED_TOOL = "## {{NAME}}\n\n{{TOOL}}\n\n"
GLM4_CALL = "{{NAME}}\n{{ARGUMENTS}}"

for _prompt in (
    ToolsPrompt("react_en", REACT_EN),
    ToolsPrompt("react_zh", REACT_ZH),
    ToolsPrompt("glm4", GLM4, NAMED_TOOL, "", call=GLM4_CALL, between_calls="\n", after_calls=""),
    ToolsPrompt("toolbench", TOOLBENCH, after_calls=""),
    ToolsPrompt("custom", CUSTOM, NAMED_TOOL, ""),
    ToolsPrompt(
        "hermes",
        HERMES,
        "{{JSON}}",
        "\n",
        keeps_system=True,
        call='<tool_call>\n{"name": "{{NAME}}", "arguments": {{ARGUMENTS}}}\n</tool_call>',
        between_calls="\n",
        after_calls="",
        own_line=True,
        result="<tool_response>\n{{RESULT}}\n</tool_response>",
        observation="",
    ),
    ToolsPrompt(
        "qwen",
        QWEN,
        "### {{NAME}}\n\n{{NAME}}: {{DESCRIPTION}} Parameters: {{PARAMETERS}} Format the arguments as a JSON object.",
        keeps_system=True,
        call="✿FUNCTION✿: {{NAME}}\n✿ARGS✿: {{ARGUMENTS}}\n",
        after_calls="✿RESULT✿:",
        observation="✿RESULT✿:",
    ),
):
    register_tools_prompt(_prompt)
