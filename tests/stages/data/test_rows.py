from __future__ import annotations

from typing import Any

import pytest

from stages.data.rows import RowError, Standardizer

Turns = list[tuple[str, str]]


def standardize(row: dict[str, Any]) -> dict[str, Any]:
    return Standardizer(seed=42).standardize(row)


def turns(row: dict[str, Any]) -> Turns:
    return [(message["role"], message["content"]) for message in standardize(row)["messages"]]


PAIR = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # alpaca
        ({"instruction": "I", "input": "X", "output": "O"}, [("user", "I\nX"), ("assistant", "O")]),
        ({"instruction": "I", "input": "", "output": "O"}, [("user", "I"), ("assistant", "O")]),
        ({"instruction": "I", "input": None, "output": "O"}, [("user", "I"), ("assistant", "O")]),
        ({"Instruction": "I", "Input": "X", "Output": "O"}, [("user", "I\nX"), ("assistant", "O")]),
        (
            {"instruction": "I", "input": "X", "output": "O", "text": "all of it"},
            [("user", "I\nX"), ("assistant", "O")],
        ),
        (
            {"instruction": "I", "input": "", "output": "O", "system": "S", "history": [["q", "r"]]},
            [("system", "S"), ("user", "q"), ("assistant", "r"), ("user", "I"), ("assistant", "O")],
        ),
        # messages
        ({"messages": PAIR}, [("user", "u"), ("assistant", "a")]),
        ({"Messages": PAIR}, [("user", "u"), ("assistant", "a")]),
        (
            {"messages": [{"role": "system", "content": "s"}, *PAIR, *PAIR]},
            [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "u"), ("assistant", "a")],
        ),
        ({"messages": PAIR, "system": "S"}, [("system", "S"), ("user", "u"), ("assistant", "a")]),
        (
            {"messages": [{"role": "system", "content": "s"}, *PAIR], "system": "S"},
            [("system", "s"), ("user", "u"), ("assistant", "a")],
        ),
        (
            {"messages": '[{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]'},
            [("user", "u"), ("assistant", "a")],
        ),
        (
            {"messages": "[{'role': 'user', 'content': 'u'}, {'role': 'bot', 'content': 'a'}]"},
            [("user", "u"), ("assistant", "a")],
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "u"}]}, PAIR[1]]},
            [("user", "u"), ("assistant", "a")],
        ),
        (
            {"messages": [*PAIR, {"role": "tool", "content": "t"}, {"role": "assistant", "content": "b"}]},
            [("user", "u"), ("assistant", "a"), ("tool", "t"), ("assistant", "b")],
        ),
        ({"messages": [PAIR[1]]}, [("assistant", "a")]),
        # ShareGPT's kinds
        (
            {"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]},
            [("user", "h"), ("assistant", "g")],
        ),
        (
            {"system": "S", "conversation": [{"human": "h", "assistant": "g"}, {"human": "i", "assistant": "j"}]},
            [("system", "S"), ("user", "h"), ("assistant", "g"), ("user", "i"), ("assistant", "j")],
        ),
        # query and response, under any of their names
        (
            {"system": "s", "query": "q2", "response": "r2", "history": [["q1", "r1"]]},
            [("system", "s"), ("user", "q1"), ("assistant", "r1"), ("user", "q2"), ("assistant", "r2")],
        ),
        (
            {"query": "q2", "response": "r2", "history": "[['q1', 'r1']]"},
            [("user", "q1"), ("assistant", "r1"), ("user", "q2"), ("assistant", "r2")],
        ),
        ({"prompt": "q", "completion": "r"}, [("user", "q"), ("assistant", "r")]),
        ({"Question": "q", "Answer": "r"}, [("user", "q"), ("assistant", "r")]),
        ({"instruction": "q", "output": "r"}, [("user", "q"), ("assistant", "r")]),
        ({"input": "q", "target": "r", "system_prompt": "s"}, [("system", "s"), ("user", "q"), ("assistant", "r")]),
        ({"question": 7, "answer": 49}, [("user", "7"), ("assistant", "49")]),
        ({"query": "q", "response": "r", "text": "not this"}, [("user", "q"), ("assistant", "r")]),
        ({"query": "q", "response": "r", "id": 3, "source": "x"}, [("user", "q"), ("assistant", "r")]),
        # text for pre-training
        ({"text": "once upon a time"}, [("assistant", "once upon a time")]),
    ],
)
def test_every_format_becomes_the_same_kind_of_row(row: dict[str, Any], expected: Turns) -> None:
    assert turns(row) == expected


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        ({"messages": PAIR, "rejected_response": "b"}, "rejected_response", "b"),
        (
            {"messages": PAIR, "rejected_messages": [PAIR[0], {"role": "assistant", "content": "b"}]},
            "rejected_response",
            "b",
        ),
        (
            {
                "messages": [{"role": "system", "content": "s"}, *PAIR],
                "rejected_messages": [PAIR[0], {"role": "assistant", "content": "b"}],
            },
            "rejected_response",
            "b",
        ),
        ({"messages": PAIR, "label": True}, "label", 1),
        ({"messages": PAIR, "label": 2}, "label", 2),
        ({"messages": PAIR, "images": ["/x.jpg"]}, "images", ["/x.jpg"]),
        ({"query": "q", "response": "r", "image": "/x.jpg"}, "images", ["/x.jpg"]),
        ({"messages": PAIR, "tools": [{"type": "function"}]}, "tools", '[{"type":"function"}]'),
        ({"messages": PAIR, "tools": "[]"}, "tools", "[]"),
    ],
)
def test_columns_for_later_stages_are_kept(row: dict[str, Any], column: str, expected: object) -> None:
    assert standardize(row)[column] == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "q", "output": "r", "text": "s"}, "'output', 'text' all mean response"),
        ({"prompt": "q", "question": "p", "response": "r"}, "'prompt', 'question' all mean query"),
        ({"query": "q", "Response": "r", "response": "s"}, "'Response', 'response' all mean response"),
        ({"messages": PAIR, "conversations": PAIR}, "'messages', 'conversations' all are conversations"),
        ({"query": "q", "reply": "r"}, "no response: it has columns 'query', 'reply'"),
        ({}, "it has no columns"),
        ({"query": "q", "response": None}, "no response"),
        ({"query": "q", "response": ""}, "message 2, an answer, is empty"),
        ({"query": "q", "response": "  \n"}, "message 2, an answer, is empty"),
        ({"query": "q", "response": {"text": "r"}}, "response is not text"),
        ({"query": True, "response": "r"}, "query is not text: True"),
        ({"query": "q", "response": "r", "history": "no list"}, "history are neither a list nor the text of one"),
        ({"query": "q", "response": "r", "history": ["q1", "r1"]}, "turn 1 of history"),
        ({"messages": []}, "messages are a list of turns"),
        ({"messages": "hello"}, "neither a list nor the text of one"),
        ({"messages": ["hello"]}, "message 1 is 'hello'"),
        ({"messages": [{"role": "user", "content": "u"}]}, "the last message is not an answer"),
        ({"messages": [PAIR[0], PAIR[0], PAIR[1]]}, "message 2 is of role user"),
        ({"messages": [PAIR[1], PAIR[0], PAIR[1]]}, "message 1 is of role assistant"),
        ({"messages": [*PAIR, {"role": "system", "content": "s"}]}, "message 3 is of role system"),
        ({"messages": [{"role": "function_call", "content": "f"}]}, "role 'function_call'. Choose from: user"),
        ({"messages": [{"content": "u"}]}, "neither role and content nor human and assistant"),
        ({"messages": [{"role": "user"}, PAIR[1]]}, "content of message 1 is missing"),
        ({"messages": [{"role": "user", "content": None}, PAIR[1]]}, "content of message 1 is missing"),
        ({"messages": [PAIR[0], {"role": "assistant", "content": "", "tool_calls": [{}]}]}, "tool_calls"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": "x"}]}, PAIR[1]]}, "is not text"),
        ({"messages": PAIR, "rejected_response": "a"}, "equals the chosen one"),
        ({"messages": PAIR, "rejected_messages": [{"role": "user", "content": "v"}, PAIR[1]]}, "the same turns"),
        ({"messages": PAIR, "label": "good"}, "label is true, false or a whole number"),
    ],
)
def test_a_row_that_is_no_use_says_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        standardize(row)


def test_one_of_several_answers_is_drawn_with_the_seed() -> None:
    row = {"query": "q", "response": ["r1", "r2", "r3"]}
    drawn = [turns_of(Standardizer(seed), row) for seed in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1]
    assert len({str(one) for one in drawn}) > 1


def turns_of(standardizer: Standardizer, row: dict[str, Any]) -> list[str]:
    return [standardizer.standardize(row)["messages"][-1]["content"] for _ in range(10)]
