"""The weights of an answer's parts, with every piece written out."""

from __future__ import annotations

import pytest

from stages.data.loss_scale import LossScale, Rule, by_keyword, by_pattern, loss_scales, register_loss_scale
from stages.data.rows import RowError
from stages.errors import ArgumentsError

AGENT = "Thought: I look.\nAction: search\nAction Input: {}\nObservation: found\nThought: I know.\nFinal Answer: four"
CALL = 'Yes.\n<tool_call>\n{"name": "a"}\n</tool_call>\n<tool_call>b</tool_call> done'


def pieces(name: str, content: str, query: str = "") -> list[tuple[str, float]]:
    return [(content[start:end], weight) for start, end, weight in LossScale.parse(name).weigh(content, query)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("default", AGENT, [(AGENT, 1.0)]),
        ("last_round", "a", [("a", 1.0)]),
        ("all", "a", [("a", 1.0)]),
        ("default", "", []),
        ("react", "no keyword", [("no keyword", 1.0)]),
        (
            "react",
            AGENT,
            [
                ("Thought: I look.\n", 1.0),
                ("Action: search\nAction Input: {}\nObservation:", 2.0),
                (" found\n", 0.0),
                ("Thought: I know.\nFinal Answer: four", 1.0),
            ],
        ),
        ("react", "Next: go", [("Next: go", 1.0)]),
        ("alpha_umi", "I am. Next: go\nAction: x", [("I am. ", 1.0), ("Next: go\nAction: x", 2.0)]),
        (
            "agentflan",
            "Hm. Name: n\nAction: a\nArguments: {}\nThought: t\nCommand c",
            [
                ("Hm. Name:", 1.0),
                (" n\n", 3.0),
                ("Action:", 1.0),
                (" a\n", 3.0),
                ("Arguments:", 1.0),
                (" {}\n", 3.0),
                ("Thought: t\nCommand", 1.0),
                (" c", 3.0),
            ],
        ),
        (
            "hermes",
            CALL,
            [
                ("Yes.\n", 1.0),
                ('<tool_call>\n{"name": "a"}\n</tool_call>', 2.0),
                ("\n", 1.0),
                ("<tool_call>b</tool_call>", 2.0),
                (" done", 1.0),
            ],
        ),
        ("hermes", "<tool_call>not closed", [("<tool_call>not closed", 1.0)]),
        (
            "qwen",
            "Hm ✿FUNCTION✿: f\n✿ARGS✿: {}\n✿RESULT✿: 4\n✿RETURN✿: four",
            [("Hm ", 1.0), ("✿FUNCTION✿: f\n✿ARGS✿: {}\n✿RESULT✿:", 2.0), (" 4\n", 0.0), ("✿RETURN✿: four", 1.0)],
        ),
        ("ignore_empty_think", "<think>\n\n</think>\n\nfour", [("<think>\n\n</think>\n\n", 0.0), ("four", 1.0)]),
        ("ignore_empty_think", "<think>\nhm\n</think>\n\nfour", [("<think>\nhm\n</think>\n\nfour", 1.0)]),
        ("ignore_empty_think", "so <think></think>", [("so <think></think>", 1.0)]),
        ("ignore_think_prefix", "<think>\nhm</think>four", [("<think>\n", 0.0), ("hm</think>four", 1.0)]),
        (
            "last_round+hermes+ignore_empty_think",
            "<think></think><tool_call>a</tool_call>b",
            [("<think></think>", 0.0), ("<tool_call>a</tool_call>", 2.0), ("b", 1.0)],
        ),
        ("react+alpha_umi", "Action: x", [("Action: x", 4.0)]),
    ],
)
def test_what_a_part_weighs(name: str, content: str, expected: list[tuple[str, float]]) -> None:
    assert pieces(name, content) == expected


@pytest.mark.parametrize(
    ("query", "weight"),
    [
        ("What is the value of x?", 3.0),
        ("Say: What is the tool you want to use", 3.0),
        ("What are the required parameter names for this tool?", 3.0),
        ("What is it?", 1.0),
    ],
)
def test_what_the_query_says_weighs_the_whole_answer(query: str, weight: float) -> None:
    assert pieces("agentflan", "four", query) == [("four", weight)]


@pytest.mark.parametrize(
    ("name", "base", "binary"),
    [
        ("default", "default", True),
        ("all", "all", True),
        ("react", "default", False),
        ("last_round+react", "last_round", False),
        ("default+ignore_empty_think", "default", True),
        ("all+hermes+ignore_think_prefix", "all", False),
    ],
)
def test_what_a_name_says(name: str, base: str, binary: bool) -> None:
    scale = LossScale.parse(name)
    assert (scale.base, scale.binary, scale.plain) == (base, binary, name in ("default", "all"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reakt", "`--loss_scale reakt`: there is no loss scale 'reakt'. Did you mean react?"),
        ("last_round+", "there is no loss scale ''. Choose from: default, last_round, all, react, agentflan"),
        ("react+last_round", "`--loss_scale react+last_round`: last_round comes first, as in last_round+react"),
        ("all+all", "all comes first"),
    ],
)
def test_a_name_that_is_none(name: str, message: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        LossScale.parse(name)
    assert message in str(caught.value)


def test_a_scale_of_ones_own() -> None:
    register_loss_scale("shouting", by_pattern({"[A-Z]{2,}": 5.0}))
    assert pieces("last_round+shouting", "so LOUD") == [("so ", 1.0), ("LOUD", 5.0)]
    assert "shouting" in loss_scales()
    for name, message in (("shouting", "already"), ("all", "already"), ("a+b", "a plus sign joins names")):
        with pytest.raises(ArgumentsError, match=message):
            register_loss_scale(name, by_keyword({"x": (1.0, 1.0)}))


def test_the_names_are_those_that_the_arguments_take() -> None:
    from stages.arguments.template import LOSS_SCALES

    for name in LOSS_SCALES:
        assert LossScale.parse(name).name == name
    assert {name for name in loss_scales() if name != "shouting"} <= set(LOSS_SCALES), "shouting is a test's own"


@pytest.mark.parametrize(
    ("name", "rule", "message"),
    [
        ("raising", lambda answer, query: [1 / 0], "the loss scale raising fails: ZeroDivisionError: division by zero"),
        ("pairs", lambda answer, query: [(0, 2)], "the loss scale pairs fails: ValueError: not enough values"),
        ("negative", lambda answer, query: [(0, 2, -1)], r"gives \(0, 2, -1\.0\) after 0 characters"),
        ("gap", lambda answer, query: [(0, 1, 1), (2, 3, 1)], r"gives \(2, 3, 1\.0\) after 1 characters"),
        ("long", lambda answer, query: [(0, 9, 1)], "ends at 9 of 4 characters"),
        ("short", lambda answer, query: [], "ends at 0 of 4 characters"),
    ],
)
def test_what_is_wrong_with_a_users_rule_is_said(name: str, rule: Rule, message: str) -> None:
    register_loss_scale(name, rule)
    with pytest.raises(RowError, match=message):
        pieces(name, "four")
