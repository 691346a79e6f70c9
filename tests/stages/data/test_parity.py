"""What is trained against what is served: equal, or an error that shows where not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from stages.data.chat_template import ChatTemplate
from stages.data.parity import ParityCheck
from stages.data.templates.detect import CALLS, PROBES
from stages.data.templates.meta import find_template, templates
from stages.data.templates.native import NativeTemplate
from stages.data.templates.own import OwnTemplate
from stages.data.templates.rendered import Rendered, TemplateSettings
from stages.errors import DataError

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def native(name: str, **settings: Any) -> NativeTemplate:
    return NativeTemplate(find_template(name), TOKENS, TemplateSettings(**settings))


def row(*turns: str) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]}


@pytest.mark.parametrize("name", [meta.name for meta in templates()])
def test_what_a_template_exports_is_what_it_trains(name: str) -> None:
    template = native(name, system=None if name in ("gemma", "gemma2") else "Be.")
    text = template.chat_template(tools=True)
    assert text is not None
    check = ParityCheck(template, ChatTemplate(text, TOKENS))
    compared = [check.check(probe) for probe in (*PROBES, *CALLS)]
    assert check.num_checked == sum(compared) >= 5
    assert all(compared) or name in ("gemma", "gemma2")


@pytest.mark.parametrize(
    ("exported", "message"),
    [
        (
            CHATML.replace("<|im_end|>\n{% endfor", "<|im_end|>{% endfor"),
            "row 1: the text in training differs from that in serving from character 33 on\n"
            r"  training  …m_start|>user\nWhy 鸟?<|im_end|>\n<|im_start|>assistant\n" + "\n"
            r"  serving   …m_start|>user\nWhy 鸟?<|im_end|><|im_start|>assistant\n" + "\n"
            "                                             ^\n"
            "  Name a template with `--template`, or report this row as a bug of Martlet's.",
        ),
        (
            CHATML.replace("assistant\n{%", "assistant{%"),
            "row 1: the text in training differs from that in serving from character 55 on\n"
            r"  training  …im_end|>\n<|im_start|>assistant\n" + "\n"
            r"  serving   …im_end|>\n<|im_start|>assistant (ends here)" + "\n"
            "                                            ^\n"
            "  Name a template with `--template`, or report this row as a bug of Martlet's.",
        ),
        (
            "{{ raise_exception('never') }}",
            "row 1: the text in training differs from that in serving from character 0 on\n"
            r"  training  <|im_start|>user\nWhy 鸟?<|im_en…" + "\n"
            "  serving   (refused: TemplateError: never…\n"
            "            ^\n"
            "  Name a template with `--template`, or report this row as a bug of Martlet's.",
        ),
    ],
)
def test_a_difference_is_shown(exported: str, message: str) -> None:
    check = ParityCheck(native("chatml"), ChatTemplate(exported, TOKENS))
    with pytest.raises(DataError) as caught:
        check.check(row("Why 鸟?", "So."))
    assert str(caught.value) == message
    with pytest.raises(DataError, match=r"^train\.parquet row 7: the text"):
        check.check(row("Why 鸟?", "So."), "train.parquet row 7")


def test_tools_that_only_serving_writes_in_another_way() -> None:
    template = native("qwen2_5", tools_prompt="hermes")
    exported = native("qwen2_5", tools_prompt="react_en").chat_template(tools=True)
    assert exported is not None
    check = ParityCheck(template, ChatTemplate(exported, TOKENS))
    assert check.check(PROBES[0])
    with pytest.raises(DataError, match="row 2: the text in training differs"):
        check.check(CALLS[0])


def test_calls_are_given_as_the_template_takes_them() -> None:
    text = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
        "<call>{{ c.function.name + c.function.arguments }}{% endfor %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    chat = ChatTemplate(text, TOKENS)
    assert ParityCheck(OwnTemplate(chat, ["<|end|>"], TemplateSettings()), chat).check(
        {"messages": CALLS[2]["messages"]}
    )


class Careless:
    """A template of a user's that writes another text than it says it does."""

    name = "careless"
    turn_end = ""

    def render(self, row: Mapping[str, Any], *, answer: str | None = None) -> Rendered:
        return Rendered("q: a", [])

    def prompt(self, row: Mapping[str, Any]) -> str:
        return "q:  "

    def chat_template(self, *, tools: bool = False) -> str | None:
        return None


def test_the_text_has_to_begin_with_the_prompt() -> None:
    with pytest.raises(
        DataError, match="row 1: the text in training differs from that in its own prompt from character 3"
    ):
        ParityCheck(Careless(), ChatTemplate(CHATML, {})).check(row("q", "a"))


def test_which_rows_are_compared() -> None:
    check = ParityCheck(native("chatml"), ChatTemplate(CHATML, TOKENS))
    same = [check.check(row(f"q{n}", f"a{n}")) for n in range(200)]
    assert [n for n, compared in enumerate(same, start=1) if compared] == [1, 2, 3, 4, 50, 100, 150, 200]
    shapes: list[dict[str, Any]] = [
        row(" q", "a"),
        row("q\n", "a"),
        row("q", "a "),
        row("q", "<think>t</think>a"),
        row("q", "a", "q", "a"),
        row("", "a"),
        {"messages": [{"role": "system", "content": "S"}, *row("q", "a")["messages"]]},
        {
            "messages": [
                *row("q", "a")["messages"],
                {"role": "tool", "content": "x"},
                {"role": "assistant", "content": "b"},
            ]
        },
    ]
    tooled = {**row("q", "a"), "tools": json.dumps([{"name": "f"}])}
    assert [check.check(one) for one in shapes[:-1]] == [True] * 7
    for one in (shapes[-1], tooled):
        with pytest.raises(DataError):  # they are compared: this template knows no tools
            check.check(one)


def test_long_conversations_are_of_few_shapes() -> None:
    check = ParityCheck(native("chatml"), ChatTemplate(CHATML, TOKENS))
    for turns in range(6, 400, 2):
        check.check(row(*["q", "a"] * turns))
    assert check.num_checked < 12


def test_a_row_without_an_answer_has_no_prompt_to_compare() -> None:
    check = ParityCheck(native("chatml"), ChatTemplate(CHATML, TOKENS))
    assert not check.check({"messages": [{"role": "user", "content": "good?"}], "label": 1})
    assert check.num_checked == 0
