from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from stages.data.rows import COLUMNS, RowError, Standardizer
from stages.data.table import RowWriter
from stages.errors import DataError

Turns = list[tuple[str, str]]


def standardize(row: dict[str, Any]) -> dict[str, Any]:
    return Standardizer(seed=42).standardize(row)


def turns(row: dict[str, Any]) -> Turns:
    return [(message["role"], message["content"]) for message in standardize(row)["messages"]]


PAIR = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
SYSTEM = {"role": "system", "content": "s"}
BOT = {"role": "assistant", "content": "b"}
HUMAN_A, HUMAN_B = ({"from": "gpt", "value": text} for text in "ab")
GIF = "data:image/gif;base64,R0lGODlh"
IMAGE = {"type": "image_url", "image_url": {"url": "x.png"}}
VIDEO = {"type": "video", "video": "https://h/v.mp4"}
SOUND = {"type": "input_audio", "input_audio": {"data": "UklGRgAAAABXQVZF", "format": "wav"}}
SOUND_URI = "data:audio/wav;base64,UklGRgAAAABXQVZF"
TOOL_TEXT = '[{"type":"function","function":{"name":"f","parameters":{}}}]'
F_TEXT = '[{"name":"f","description":"é"}]'
GROUNDED = [
    {"role": "user", "content": "<image>Where is <ref-object>?"},
    {"role": "assistant", "content": "At <bbox>"},
]
CALLS_TEXT = '[{"name":"f","arguments":{"x":1}},{"name":"g","arguments":{"z":[2]}}]'
CALLS = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"id": "2", "type": "function", "function": {"name": "g", "arguments": {"y": None, "z": [2]}}},
    ],
}


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
        ({"query": "q", "response": "r", "id": 3, "source": "x"}, [("user", "q"), ("assistant", "r")]),
        # TRL's prompt and completion, as conversations
        (
            {"prompt": [PAIR[0]], "completion": [{"role": "assistant", "content": "a"}]},
            [("user", "u"), ("assistant", "a")],
        ),
        # text for pre-training
        ({"text": "once upon a time"}, [("assistant", "once upon a time")]),
        ({"content": "once upon a time", "id": 7}, [("assistant", "once upon a time")]),
        # classification
        ({"messages": [PAIR[0]], "label": 2}, [("user", "u")]),
        ({"query": "q", "label": "2"}, [("user", "q")]),
        ({"text": "a good film", "label": 0}, [("user", "a good film")]),
        ({"system": "S", "query": "q", "label": 1.0}, [("system", "S"), ("user", "q")]),
        # tools
        (
            {
                "conversations": [
                    {"from": "human", "value": "h"},
                    {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                    {"from": "observation", "value": "3"},
                    {"from": "gpt", "value": "g"},
                ]
            },
            [("user", "h"), ("assistant", ""), ("tool", "3"), ("assistant", "g")],
        ),
        (
            {"messages": [PAIR[0], CALLS, {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}, PAIR[1]]},
            [("user", "u"), ("assistant", ""), ("tool", "1"), ("tool", "2"), ("assistant", "a")],
        ),
        (
            {
                "messages": [
                    PAIR[0],
                    {"role": "assistant", "content": "Action: f\nAction Input: {}\nObservation:"},
                    {"role": "tool", "content": "r"},
                    PAIR[1],
                ]
            },
            [
                ("user", "u"),
                ("assistant", "Action: f\nAction Input: {}\nObservation:"),
                ("tool", "r"),
                ("assistant", "a"),
            ],
        ),
        (
            {"messages": [PAIR[0], CALLS, {"role": "tool", "content": {"t": 20, "u": None}}, PAIR[1]]},
            [("user", "u"), ("assistant", ""), ("tool", '{"t":20}'), ("assistant", "a")],
        ),
        # the better of two answers
        (
            {"instruction": "I", "input": "X", "chosen": "c", "rejected": "r"},
            [("user", "I\nX"), ("assistant", "c")],
        ),
        # text that no tokenizer minds
        ({"query": "a\0b", "response": "\ufeffr"}, [("user", "a\0b"), ("assistant", "\ufeffr")]),
        ({"query": "<image> is a tag", "response": "r"}, [("user", "<image> is a tag"), ("assistant", "r")]),
    ],
)
def test_every_format_becomes_the_same_kind_of_row(row: dict[str, Any], expected: Turns) -> None:
    assert turns(row) == expected


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
SEEN = [{"role": "user", "content": "<image>u"}, PAIR[1]]
BOX = {"caption": "c", "bbox": [1, 2, 3.5, 4], "bbox_type": "real", "image": 0}
BOX_TEXT = '{"caption":"c","bbox":[1,2,3.5,4],"bbox_type":"real","image":0}'


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        # the worse of two answers
        ({"messages": PAIR, "rejected_response": "b"}, "rejected_response", "b"),
        ({"query": "q", "response": "r", "rejected_response": "b"}, "rejected_response", "b"),
        ({"messages": PAIR, "rejected_messages": [PAIR[0], BOT]}, "rejected_response", "b"),
        ({"messages": PAIR, "rejected_messages": str([PAIR[0], BOT])}, "rejected_response", "b"),
        ({"messages": [SYSTEM, *PAIR], "rejected_messages": [SYSTEM, PAIR[0], BOT]}, "rejected_response", "b"),
        ({"messages": [SYSTEM, *PAIR], "rejected_messages": [PAIR[0], BOT]}, "rejected_response", "b"),
        ({"messages": PAIR, "rejected_messages": [SYSTEM, PAIR[0], BOT]}, "rejected_response", "b"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "rejected_response", "b"),
        ({"prompt": [PAIR[0]], "chosen": [PAIR[1]], "rejected": [BOT]}, "rejected_response", "b"),
        ({"chosen": PAIR, "rejected": [PAIR[0], BOT]}, "rejected_response", "b"),
        ({"prompt": "u", "chosen": PAIR, "rejected": [PAIR[0], BOT]}, "rejected_response", "b"),
        (
            {"conversations": [{"from": "human", "value": "u"}], "chosen": HUMAN_A, "rejected": HUMAN_B},
            "rejected_response",
            "b",
        ),
        # KTO's and classes' labels
        ({"messages": PAIR, "label": True}, "label", 1),
        ({"messages": PAIR, "label": False}, "label", 0),
        ({"query": "q", "response": "r", "label": "false"}, "label", 0),
        ({"messages": [PAIR[0]], "label": 2}, "label", 2),
        ({"text": "t", "label": "7"}, "label", 7),
        # tools
        ({"messages": PAIR, "tools": [TOOL]}, "tools", TOOL_TEXT),
        ({"messages": PAIR, "tools": TOOL_TEXT}, "tools", TOOL_TEXT),
        ({"messages": PAIR, "tools": TOOL}, "tools", TOOL_TEXT),
        ({"messages": PAIR, "tools": [TOOL_TEXT[1:-1]]}, "tools", TOOL_TEXT),
        ({"messages": PAIR, "tools": [{"name": "f", "description": "é", "enum": None}]}, "tools", F_TEXT),
        # media
        ({"messages": SEEN, "images": ["/x.jpg"]}, "images", ["/x.jpg"]),
        ({"messages": SEEN, "images": "/x.jpg"}, "images", ["/x.jpg"]),
        ({"messages": SEEN, "images": '["/x.jpg"]'}, "images", ["/x.jpg"]),
        ({"messages": SEEN, "images": [{"path": "/x.jpg", "bytes": None}]}, "images", ["/x.jpg"]),
        ({"messages": SEEN, "images": [{"path": "gone", "bytes": b"GIF89a"}]}, "images", [GIF]),
        ({"messages": SEEN, "images": [{"bytes": "R0lGODlh"}]}, "images", [GIF]),
        ({"messages": SEEN, "images": [b"GIF89a"]}, "images", [GIF]),
        ({"messages": SEEN, "images": [GIF]}, "images", [GIF]),
        ({"messages": SEEN, "images": [{"url": "https://h/x.jpg"}]}, "images", ["https://h/x.jpg"]),
        ({"query": "q", "response": "r", "image": "/x.jpg"}, "images", ["/x.jpg"]),
        ({"query": "q", "response": "r", "videos": ["/v.mp4"]}, "videos", ["/v.mp4"]),
        ({"query": "q", "response": "r", "audio": "/a.wav"}, "audios", ["/a.wav"]),
        # grounding
        ({"messages": GROUNDED, "images": ["x"], "objects": [BOX]}, "objects", f"[{BOX_TEXT}]"),
        ({"messages": GROUNDED, "images": ["x"], "objects": str([BOX])}, "objects", f"[{BOX_TEXT}]"),
        (
            {"messages": GROUNDED, "images": ["x"], "objects": {"ref": ["c"], "bbox": [[1, 2, 3.5, 4]]}},
            "objects",
            f"[{BOX_TEXT}]",
        ),
        (
            {
                "messages": [PAIR[0], {"role": "assistant", "content": "<bbox><bbox>"}],
                "images": ["x", "y"],
                "objects": {"ref": ["c"], "bbox": [[0.5, 1], [0, 0, 1, 1]], "bbox_type": "norm1", "image_id": [1, 0]},
            },
            "objects",
            '[{"caption":"c","bbox":[0.5,1],"bbox_type":"norm_1","image":1},'
            '{"bbox":[0,0,1,1],"bbox_type":"norm_1","image":0}]',
        ),
        (
            {
                "messages": GROUNDED,
                "images": ["x"],
                "objects": [{"caption": "c", "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]]}],
            },
            "objects",
            '[{"caption":"c","bbox":[[1,2,3,4],[5,6,7,8]],"bbox_type":"real","image":0}]',
        ),
    ],
)
def test_columns_for_later_stages_are_kept(row: dict[str, Any], column: str, expected: object) -> None:
    standard = standardize(row)
    assert standard.keys() - {"messages", "images"} == {column} - {"images"}
    assert standard[column] == expected


@pytest.mark.parametrize(
    "row",
    [
        {"messages": PAIR, "tools": "[]"},
        {"messages": PAIR, "tools": []},
        {"messages": PAIR, "tools": "", "images": [], "objects": "", "label": None},
        {"messages": PAIR, "rejected_response": None, "rejected_messages": "", "videos": None},
        {"query": "u", "response": "a", "history": "", "tools": " "},
        {"query": "u", "response": "a", "history": None, "objects": []},
    ],
)
def test_empty_columns_are_absent(row: dict[str, Any]) -> None:
    assert standardize(row) == {"messages": PAIR}


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (
            [PAIR[0], CALLS, {"role": "tool", "content": "1"}, PAIR[1]],
            {"role": "assistant", "content": "", "tool_calls": CALLS_TEXT},
        ),
        (
            [PAIR[0], CALLS | {"content": "Let me see."}, {"role": "tool", "content": "1"}, PAIR[1]],
            {"role": "assistant", "content": "Let me see.", "tool_calls": CALLS_TEXT},
        ),
        (
            [PAIR[0], {"role": "function_call", "content": '{"name": "f", "arguments": "{\\"x\\": 1}"}'}],
            {"role": "assistant", "content": "", "tool_calls": '[{"name":"f","arguments":{"x":1}}]'},
        ),
        (
            [
                PAIR[0],
                PAIR[1],
                {"role": "tool_call", "content": '{"name": "f"}'},
                {"role": "tool_call", "content": '{"name": "g", "arguments": {}}'},
                {"role": "tool_response", "content": "1"},
                PAIR[1],
            ],
            {
                "role": "assistant",
                "content": "a",
                "tool_calls": '[{"name":"f","arguments":{}},{"name":"g","arguments":{}}]',
            },
        ),
        ([PAIR[0], {**PAIR[1], "loss": False}], {"role": "assistant", "content": "a", "loss": False}),
        ([PAIR[0], {**PAIR[1], "loss": True}], {"role": "assistant", "content": "a", "loss": True}),
        ([PAIR[0], {**PAIR[1], "weight": 0}], {"role": "assistant", "content": "a", "loss": False}),
        ([{**PAIR[0], "loss": False}, {**PAIR[1], "loss": None}], {"role": "assistant", "content": "a"}),
        ([PAIR[0], {**PAIR[1], "name": "Bob", "reasoning": "…"}], {"role": "assistant", "content": "a"}),
    ],
)
def test_a_message_has_calls_and_loss_where_they_were_given(turns: list[Any], expected: dict[str, Any]) -> None:
    assert standardize({"messages": turns})["messages"][1] == expected


@pytest.mark.parametrize(
    ("messages", "columns", "texts", "media"),
    [
        ([PAIR[0], PAIR[1]], {"images": ["x", "y"]}, ["<image><image>u", "a"], {"images": ["x", "y"]}),
        (
            [SYSTEM, PAIR[0], PAIR[1], {"role": "user", "content": "<image>v"}, PAIR[1]],
            {"images": ["x", "y"]},
            ["s", "<image>u", "a", "<image>v", "a"],
            {"images": ["x", "y"]},
        ),
        (
            PAIR,
            {"images": ["x"], "videos": ["v"], "audios": ["w"]},
            ["<video><audio><image>u", "a"],
            {"images": ["x"], "videos": ["v"], "audios": ["w"]},
        ),
        ([PAIR[1]], {"images": ["x"]}, ["<image>a"], {"images": ["x"]}),
        (
            [{"role": "user", "content": [IMAGE, {"type": "text", "text": "What is "}, VIDEO, "?"]}, PAIR[1]],
            {},
            ["<image>What is <video>?", "a"],
            {"images": ["x.png"], "videos": ["https://h/v.mp4"]},
        ),
        (
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "u", "image": None}]}, PAIR[1]],
            {"images": ["x"]},
            ["<image>u", "a"],
            {"images": ["x"]},
        ),
        (
            [{"role": "user", "content": [SOUND, {"type": "audio", "path": "b.wav"}]}, PAIR[1]],
            {},
            ["<audio><audio>", "a"],
            {"audios": [SOUND_URI, "b.wav"]},
        ),
    ],
)
def test_every_medium_has_its_tag(
    messages: list[Any], columns: dict[str, Any], texts: list[str], media: dict[str, list[str]]
) -> None:
    standard = standardize({"messages": messages, **columns})
    assert [message["content"] for message in standard["messages"]] == texts
    assert {name: value for name, value in standard.items() if name != "messages"} == media


def test_of_two_conversations_what_follows_the_last_difference_is_cut_off() -> None:
    tail = [{"role": "user", "content": "v"}, {"role": "assistant", "content": "c"}]
    standard = standardize({"messages": [SYSTEM, *PAIR, *tail], "rejected_messages": [SYSTEM, PAIR[0], BOT, *tail]})
    assert standard == {"messages": [SYSTEM, *PAIR], "rejected_response": "b"}


@pytest.mark.parametrize(
    ("columns", "messages", "row", "expected"),
    [
        ({"src": "query", "dst": "response"}, {}, {"src": "q", "dst": "r"}, [("user", "q"), ("assistant", "r")]),
        (
            {"Problem": "query", "solution": "response"},
            {},
            {"problem": "q", "solution": "r", "answer": "no", "question": "p"},
            [("user", "q"), ("assistant", "r")],
        ),
        ({"talk": "messages"}, {}, {"talk": PAIR}, [("user", "u"), ("assistant", "a")]),
        (
            {"a": "instruction", "b": "input"},
            {},
            {"a": "I", "b": "X", "output": "O"},
            [("user", "I\nX"), ("assistant", "O")],
        ),
        (
            {},
            {"role_key": "who", "content_key": "says", "user_role": "Q", "assistant_role": "A", "system_role": "rules"},
            {
                "messages": [
                    {"who": "rules", "says": "s"},
                    {"who": "Q", "says": "u"},
                    {"who": "A", "says": "a"},
                ]
            },
            [("system", "s"), ("user", "u"), ("assistant", "a")],
        ),
        (
            {},
            {"user_role": "q", "assistant_role": "a"},
            {"conversation": [{"q": "u", "a": "b"}]},
            [("user", "u"), ("assistant", "b")],
        ),
    ],
)
def test_a_registered_dataset_has_its_own_names(
    columns: dict[str, str], messages: dict[str, str], row: dict[str, Any], expected: Turns
) -> None:
    standard = Standardizer(42, columns, messages).standardize(row)
    assert [(message["role"], message["content"]) for message in standard["messages"]] == expected


@pytest.mark.parametrize(
    ("columns", "messages", "reason"),
    [
        ({"src": "qeury"}, {}, r"columns: 'src' is to be read as 'qeury'. Choose from: query, response, system"),
        ({}, {"role": "who"}, r"messages: role is 'who'. Choose from: role_key, content_key"),
        ({}, {"role_key": 3}, r"messages: role_key is 3. Choose from"),
    ],
)
def test_a_mapping_that_means_nothing_is_an_error(
    columns: dict[str, str], messages: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        Standardizer(42, columns, messages)


def test_one_of_several_answers_is_drawn_with_the_seed() -> None:
    row = {"query": "q", "response": ["r1", "r2", "r3"]}
    drawn = [turns_of(Standardizer(seed), row) for seed in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1]
    assert len({str(one) for one in drawn}) > 1


def turns_of(standardizer: Standardizer, row: dict[str, Any]) -> list[str]:
    return [standardizer.standardize(row)["messages"][-1]["content"] for _ in range(10)]


def test_a_row_read_twice_is_the_same_row() -> None:
    """Reading changes nothing in the row that it was given."""
    row = {"messages": PAIR, "images": ["x"], "rejected_messages": [PAIR[0], BOT]}
    before = copy.deepcopy(row)
    standardizer = Standardizer(42)
    assert standardizer.standardize(row) == standardizer.standardize(row)
    assert row == before


WORDS = [
    "user",
    "assistant",
    "tool",
    "text",
    "image",
    "",
    " ",
    "a",
    "<image>",
    "<bbox>",
    "[1, 2]",
    "{'a': 1}",
    "\0",
    "😀",
]
VALUES = [None, True, 0, 2, -1, 2**64, 0.5, float("nan"), b"x", (1, 2), "[['q', 'r']]", "'\\ud800'", "[" * 2000, *WORDS]
KEYS = ["role", "content", "from", "value", "human", "gpt", "type", "text", "image", "url", "path", "bytes", "name", 3]
KEYS += ["arguments", "function", "tool_calls", "loss", "bbox", "caption", "ref", "bbox_type", "image_id"]
NAMES = [name for names in COLUMNS.values() for name in names] + [
    "messages",
    "conversation",
    "chosen",
    "rejected",
    "Query",
]


def anything(random: Random, depth: int = 0) -> Any:
    kind = random.random() if depth < 4 else 1.0
    if kind < 0.3:
        return [anything(random, depth + 1) for _ in range(random.randrange(4))]
    if kind < 0.55:
        return {random.choice(KEYS): anything(random, depth + 1) for _ in range(random.randrange(5))}
    return random.choice(VALUES)


def test_whatever_a_row_holds_it_is_read_or_refused(tmp_path: Path) -> None:
    """Nothing but a RowError comes out, and what is read can be written."""
    random = Random(0)
    outcomes = Counter[str]()
    with RowWriter(tmp_path / "rows.arrow") as writer:
        for _ in range(4000):
            row: dict[Any, Any] = {"query": random.choice(WORDS), "response": random.choice(WORDS)}
            if random.random() < 0.5:
                row = {"messages": [{"role": random.choice(WORDS[:3]), "content": anything(random)} for _ in "ab"]}
            row |= {random.choice(NAMES): anything(random) for _ in range(random.randrange(4))}
            try:
                writer.write(Standardizer(42).standardize(row))
                outcomes["read"] += 1
            except RowError as error:
                outcomes[error.kind] += 1
    assert outcomes["read"] > 500
    assert outcomes.keys() >= {"media", "tools", "label", "objects", "preference", "wrong type", "wrong turns"}
