"""Tools, calls and what tools return, in every wording, written out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stages.data.rows import RowError
from stages.data.templates.meta import find_template
from stages.data.templates.native import NativeTemplate
from stages.data.templates.rendered import TemplateSettings
from stages.data.templates.tools import ToolsPrompt, find_tools_prompt, parse_calls, parse_tools, register_tools_prompt
from stages.errors import ArgumentsError

# As many characters as that of which ms-swift 3.0.0's lengths are known: 143 as text, 11 its name.
TOOL = {
    "name": "get_weather",
    "description": "Tells the weather in town.",
    "parameters": {"type": "object", "properties": {"city": {"type": "str"}}},
}
WRAPPED = {"type": "function", "function": TOOL}
WRITTEN = (
    "{'name': 'get_weather', 'description': 'Tells the weather in town.', "
    "'parameters': {'type': 'object', 'properties': {'city': {'type': 'str'}}}}"
)
SCHEMA = '{"type": "object", "properties": {"city": {"type": "str"}}}'


@pytest.mark.parametrize(
    ("name", "length"), [("react_en", 605), ("react_zh", 357), ("glm4", 248), ("toolbench", 1566), ("custom", 216)]
)
def test_the_wordings_have_the_lengths_that_swift_gives_them(name: str, length: int) -> None:
    assert len(WRITTEN) == 143
    for tool in (TOOL, WRAPPED):
        assert len(find_tools_prompt(name).system([tool], "S")) == length


REACT_EN = f"""Answer the following questions as best as you can. You have access to the following tools:

{WRITTEN}

{WRITTEN}

Use the following format:

Thought: you should always think about what to do
Action: the action to take, should be one of [get_weather,get_weather]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Final Answer: the final answer to the original input question

Begin!
"""
GLM4 = f"""你是一个名为 ChatGLM 的人工智能助手。\
你是基于智谱AI训练的语言模型 GLM-4 模型开发的，你的任务是针对用户的问题和要求提供适当的答复和支持。

# 可用工具

## get_weather

{WRITTEN}

## get_weather

{WRITTEN}

"""
CUSTOM = f"""你是一个人工智能助手。你的任务是针对用户的问题和要求提供适当的答复和支持。

    # 可用工具

    ## get_weather

{WRITTEN}

## get_weather

{WRITTEN}

"""
HERMES = f"""S

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{json.dumps(WRAPPED)}
{json.dumps(WRAPPED)}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
QWEN = f"""S

# Tools

## You have access to the following tools:

### get_weather

get_weather: Tells the weather in town. Parameters: {SCHEMA} Format the arguments as a JSON object.

### get_weather

get_weather: Tells the weather in town. Parameters: {SCHEMA} Format the arguments as a JSON object.

## When you need to call a tool, please insert the following command in your reply, which can be called zero or multiple times according to your needs:

✿FUNCTION✿: The tool to use, should be one of [get_weather,get_weather]
✿ARGS✿: The input of the tool
✿RESULT✿: Tool results
✿RETURN✿: Reply based on tool results. Images need to be rendered as ![](url)"""  # noqa: E501


@pytest.mark.parametrize(
    ("name", "expected"),
    [("react_en", REACT_EN), ("glm4", GLM4), ("custom", CUSTOM), ("hermes", HERMES), ("qwen", QWEN)],
)
def test_the_system_message(name: str, expected: str) -> None:
    assert find_tools_prompt(name).system([TOOL, WRAPPED], "S") == expected


@pytest.mark.parametrize("name", ["hermes", "qwen"])
def test_without_a_system_message_of_its_own(name: str) -> None:
    assert find_tools_prompt(name).system([TOOL], None).startswith("# Tools\n")


def test_a_tool_that_looks_like_a_placeholder() -> None:
    tool = {"name": "{{TOOLS}}", "description": "{{NAMES}} {{NAME}}"}
    assert "\n{'name': '{{TOOLS}}', 'description': '{{NAMES}} {{NAME}}'}\n" in find_tools_prompt("react_en").system(
        [tool], None
    )


def call(*cities: str) -> str:
    return json.dumps([{"name": "get_weather", "arguments": {"city": city}} for city in cities], ensure_ascii=False)


def shown(
    messages: list[dict[str, Any]], tools_prompt: str, template: str = "chatml", loss_scale: str = "default"
) -> str:
    """The text with what is learnt in brackets, without ChatML's and GLM's tokens for roles."""
    native = NativeTemplate(
        find_template(template), {}, TemplateSettings(tools_prompt=tools_prompt, loss_scale=loss_scale)
    )
    text, spans = native.render({"messages": messages})
    for start, end, weight in reversed(spans):
        text = f"{text[:start]}[{text[start:end]}]{'' if weight == 1 else f'×{weight:g}'}{text[end:]}"
    assert native.prompt({"messages": messages}) == native.render({"messages": messages}).text[: spans[-1].start]
    for token, letter in (("<|im_start|>user\n", "U:"), ("<|im_start|>assistant\n", "A:"), ("<|im_end|>", "/")):
        text = text.replace(token, letter)
    return text


USER = {"role": "user", "content": "Wie warm?"}
CALLED = {"role": "assistant", "content": "Ich sehe nach.", "tool_calls": call("Köln")}
TWICE = {"role": "assistant", "content": "", "tool_calls": call("A", "B")}
WRITTEN_OUT = {
    "role": "assistant",
    "content": "Thought: hm\nAction: get_weather\nAction Input: {}\nObservation:",
}
WARM = {"role": "tool", "content": "20 °C"}
COLD = {"role": "tool", "content": "2 °C\n"}
ANSWER = {"role": "assistant", "content": "Warm."}


@pytest.mark.parametrize(
    ("tools_prompt", "messages", "expected"),
    [
        (
            "react_en",
            [USER, CALLED, WARM, ANSWER],
            'U:Wie warm?/\nA:[Ich sehe nach.\nAction: get_weather\nAction Input: {"city": "Köln"}\nObservation:]'
            "20 °C[Warm./]\n",
        ),
        (
            "react_en",
            [USER, TWICE, WARM, COLD, ANSWER],
            'U:Wie warm?/\nA:[Action: get_weather\nAction Input: {"city": "A"}\nAction: get_weather\n'
            'Action Input: {"city": "B"}\nObservation:]20 °C\nObservation:2 °C\n[Warm./]\n',
        ),
        (
            "react_zh",
            [USER, WRITTEN_OUT, COLD, WRITTEN_OUT, WARM, ANSWER],
            "U:Wie warm?/\nA:[Thought: hm\nAction: get_weather\nAction Input: {}\nObservation:]2 °C\n"
            "[Thought: hm\nAction: get_weather\nAction Input: {}\nObservation:]20 °C[Warm./]\n",
        ),
        (
            "toolbench",
            [USER, CALLED, WARM, ANSWER],
            'U:Wie warm?/\nA:[Ich sehe nach.\nAction: get_weather\nAction Input: {"city": "Köln"}\n/]\n'
            "U:20 °C/\nA:[Warm./]\n",
        ),
        (
            "toolbench",
            [USER, WRITTEN_OUT, WARM, ANSWER],
            "U:Wie warm?/\nA:[Thought: hm\nAction: get_weather\nAction Input: {}\nObservation:]20 °C[Warm./]\n",
        ),
        (
            "glm4",
            [USER, CALLED, WARM, ANSWER],
            'U:Wie warm?/\nA:[Ich sehe nach.\nget_weather\n{"city": "Köln"}/]\nU:20 °C/\nA:[Warm./]\n',
        ),
        (
            "hermes",
            [USER, CALLED, WARM, ANSWER],
            'U:Wie warm?/\nA:[Ich sehe nach.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n'
            "</tool_call>/]\nU:<tool_response>\n20 °C\n</tool_response>/\nA:[Warm./]\n",
        ),
        (
            "hermes",
            [USER, TWICE, WARM, COLD, ANSWER],
            'U:Wie warm?/\nA:[<tool_call>\n{"name": "get_weather", "arguments": {"city": "A"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "get_weather", "arguments": {"city": "B"}}\n</tool_call>/]\n'
            "U:<tool_response>\n20 °C\n</tool_response>\n<tool_response>\n2 °C\n\n</tool_response>/\nA:[Warm./]\n",
        ),
        (
            "qwen",
            [USER, CALLED, WARM, ANSWER],
            'U:Wie warm?/\nA:[Ich sehe nach.\n✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Köln"}\n✿RESULT✿:]'
            "20 °C[Warm./]\n",
        ),
    ],
)
def test_calls_and_what_they_return(tools_prompt: str, messages: list[dict[str, Any]], expected: str) -> None:
    assert shown(messages, tools_prompt) == expected


@pytest.mark.parametrize(
    ("loss_scale", "tools_prompt", "expected"),
    [
        (
            "react",
            "react_en",
            'U:Wie warm?/\nA:[Ich sehe nach.\n][Action: get_weather\nAction Input: {"city": "Köln"}\nObservation:]×2'
            "20 °C[Warm./]\n",
        ),
        (
            "last_round+react",
            "react_en",
            'U:Wie warm?/\nA:Ich sehe nach.\nAction: get_weather\nAction Input: {"city": "Köln"}\nObservation:'
            "20 °C[Warm./]\n",
        ),
        (
            "hermes",
            "hermes",
            'U:Wie warm?/\nA:[Ich sehe nach.\n][<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n'
            "</tool_call>]×2[/]\nU:<tool_response>\n20 °C\n</tool_response>/\nA:[Warm./]\n",
        ),
        (
            "all",
            "hermes",
            '[U:Wie warm?/\nA:Ich sehe nach.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n'
            "</tool_call>/\nU:<tool_response>\n20 °C\n</tool_response>/\nA:Warm./\n]",
        ),
    ],
)
def test_what_calls_weigh(loss_scale: str, tools_prompt: str, expected: str) -> None:
    native = NativeTemplate(
        find_template("chatml"), {}, TemplateSettings(tools_prompt=tools_prompt, loss_scale=loss_scale)
    )
    text, spans = native.render({"messages": [USER, CALLED, WARM, ANSWER]})
    for start, end, weight in reversed(spans):
        text = f"{text[:start]}[{text[start:end]}]{'' if weight == 1 else f'×{weight:g}'}{text[end:]}"
    for token, letter in (("<|im_start|>user\n", "U:"), ("<|im_start|>assistant\n", "A:"), ("<|im_end|>", "/")):
        text = text.replace(token, letter)
    assert text == expected


def test_glms_answers_end_with_the_role_that_comes() -> None:
    native = NativeTemplate(find_template("glm4"), {}, TemplateSettings())
    text, spans = native.render({"messages": [USER, CALLED, WARM, ANSWER, USER, ANSWER]})
    assert text == (
        '[gMASK]<sop><|user|>\nWie warm?<|assistant|>\nIch sehe nach.\nget_weather\n{"city": "Köln"}'
        "<|observation|>\n20 °C<|assistant|>\nWarm.<|user|>\nWie warm?<|assistant|>\nWarm.<|user|>"
    )
    assert [text[start:end] for start, end, _ in spans] == [
        'Ich sehe nach.\nget_weather\n{"city": "Köln"}<|observation|>',
        "Warm.<|user|>",
        "Warm.<|user|>",
    ]


def test_llama3_has_a_turn_for_tools() -> None:
    native = NativeTemplate(find_template("llama3"), {"bos_token": "<s>"}, TemplateSettings())
    text = native.render({"messages": [USER, CALLED, WARM, ANSWER], "tools": json.dumps([TOOL])}).text
    assert "<|start_header_id|>tool<|end_header_id|>\n\n20 °C<|eot_id|><|start_header_id|>assistant" in text
    assert text.startswith("<s><|start_header_id|>system<|end_header_id|>\n\nYou can use many tools(functions)")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"name": "f", "arguments": {"x": 1}}]', [{"name": "f", "arguments": {"x": 1}}]),
        ('[{"name": "f", "arguments": "{\\"x\\": 1}"}]', [{"name": "f", "arguments": {"x": 1}}]),
        ('[{"name": "f", "arguments": "not JSON"}]', [{"name": "f", "arguments": "not JSON"}]),
        ('[{"type": "function", "function": {"name": "f"}}]', [{"name": "f", "arguments": {}}]),
    ],
)
def test_calls_are_read(text: str, expected: list[dict[str, Any]]) -> None:
    assert parse_calls(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{]", "tools are not JSON: "),
        ("{}", "tools are a list, not {}"),
        ("[{}]", "tool 1 has no name: {}"),
        ('[{"name": "f"}, {"function": 3}]', "tool 2 has no name: {'function': 3}"),
    ],
)
def test_tools_that_are_none(text: str, message: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_tools(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("[1]", "call 1 of tool_calls has no name: 1"), ("x", "not JSON")])
def test_calls_that_are_none(text: str, message: str) -> None:
    with pytest.raises(RowError, match=message):
        parse_calls(text)


def test_names() -> None:
    with pytest.raises(
        ArgumentsError, match=r"`--tools_prompt react`: there is none of this name\. Did you mean react_"
    ):
        find_tools_prompt("react")
    with pytest.raises(ArgumentsError, match="Choose from: react_en, react_zh, glm4, toolbench, custom, hermes, qwen"):
        NativeTemplate(find_template("chatml"), {}, TemplateSettings(tools_prompt="vulgate"))
    register_tools_prompt(ToolsPrompt("test_terse", "Tools: {{TOOLS}} of {{NAMES}}", "{{NAME}}!", " "))
    assert (
        find_tools_prompt("test_terse").system([TOOL, TOOL], "S")
        == "Tools: get_weather! get_weather! of get_weather,get_weather"
    )
    with pytest.raises(ArgumentsError, match="there is a tools_prompt 'hermes' already"):
        register_tools_prompt(ToolsPrompt("hermes", ""))
