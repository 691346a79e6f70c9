from __future__ import annotations

import json
import logging
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages.context import Context
from stages.data.collect import Collector, Dataset
from stages.data.media import MediaFinder
from stages.data.row_maker import RowMaker
from stages.data.self_cognition import SelfCognition
from stages.data.sources import Workplace
from stages.data.spec import DatasetSpec
from stages.data.table import write_parquet
from stages.errors import DataError
from stages.sources.location import Location

GOOD = {"query": "q", "response": "r"}
PAIR = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
ANSWERS = "response, answer, output, targets, target, answer_key, solution, answers, text, completion, content"
ROLES = (
    "user, human, assistant, gpt, bot, system, tool, tool_response, function_response, observation, observations, "
    "function_call, tool_call"
)
PARTS = "text, image, image_url, video, video_url, audio, audio_url, input_audio"
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{broken"}}]}
DEEP, DEEPER = (reduce(lambda inner, _: [inner], range(depth - 1), []) for depth in (400, 950))
GROUNDED = [{"role": "user", "content": "<image>Where?"}, {"role": "assistant", "content": "<bbox>"}]


def says(content: Any, **more: Any) -> dict[str, Any]:
    """A row whose question is `content`."""
    return {"messages": [{"role": "user", "content": content}, PAIR[1]], **more}


def box(bbox: Any, **more: Any) -> dict[str, Any]:
    """A row about a picture that is there."""
    return {"messages": GROUNDED, "images": ["red.png"], "objects": [{"caption": "c", "bbox": bbox, **more}]}


class Bench:
    """A folder with data files, and what a collector needs around it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        for name in ("data", "scratch", "attachments", "out"):
            (root / name).mkdir()
        Image.new("RGB", (4, 4), "red").save(self.data / "red.png")

    def collect(
        self, name: str, *, strict: bool = False, names: SelfCognition | None = None
    ) -> tuple[Collector, list[Dataset]]:
        """Reads one file of the folder, as `preprocess` does."""
        context = Context(self.root / "scratch", self.root / "attachments", logging.getLogger("test"))
        maker = RowMaker(42, names=names, media=MediaFinder(context.scratch / "media"))
        collector = Collector(strict, maker, context)
        handed_in = self.root / "in"
        handed_in.mkdir()
        (handed_in / name).write_bytes((self.data / name).read_bytes())
        place = Workplace(handed_in, 1, context.scratch, folders=[self.data])
        return collector, list(collector.read([DatasetSpec(Location("local", "0"))], place))

    def lines(self, *rows: Any, name: str = "rows.jsonl") -> str:
        """Writes JSON lines; bytes stand for themselves."""
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(10 * limit)  # how much of it is used up already depends on who runs the test
        try:
            lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        finally:
            sys.setrecursionlimit(limit)
        (self.data / name).write_bytes(b"\n".join(lines) + b"\n")
        return name


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize(
    ("row", "kind", "reason"),
    [
        # what stands in the file
        (b"{broken", "unreadable", "not JSON: unexpected character, expected a string key at column 2"),
        (b'["q", "r"]', "unreadable", "a row is an object with named columns, not a list"),
        (b"null", "unreadable", "a row is an object with named columns, not null"),
        # columns
        ({}, "no answer", f"no response: it has no columns. Name the column one of {ANSWERS}"),
        (
            {"query": "q", "reply": "r"},
            "no answer",
            f"no response: it has columns 'query', 'reply'. Name the column one of {ANSWERS}",
        ),
        (
            {"question": "q", "output": "r", "text": "s"},
            "ambiguous columns",
            "columns 'output', 'text' all mean response: rename or drop all but one",
        ),
        (
            {"prompt": "q", "question": "p", "response": "r"},
            "ambiguous columns",
            "columns 'prompt', 'question' all mean query: rename or drop all but one",
        ),
        (
            {"Response": "r", "response": "s"},
            "ambiguous columns",
            "columns 'Response', 'response' all mean response: rename or drop all but one",
        ),
        (
            {"messages": PAIR, "Conversations": PAIR},
            "ambiguous columns",
            "columns 'messages', 'Conversations' all are conversations: drop all but one",
        ),
        (
            {"instruction": "I", "input": "", "Input": "X", "output": "O"},
            "ambiguous columns",
            "columns 'instruction', 'input', 'Input' all are part of the question: drop all but two",
        ),
        (
            {"prompt": "q", "response": "r", "chosen": "a", "rejected": "b"},
            "ambiguous columns",
            "columns 'response', 'chosen' both are the answer: drop one of them",
        ),
        # query and response
        (
            {"query": "q", "response": None},
            "no answer",
            f"no response: it has columns 'query', 'response'. Name the column one of {ANSWERS}",
        ),
        ({"query": "q", "response": ""}, "no answer", "message 2, an answer, is empty"),
        ({"query": "q", "response": " \n\t"}, "no answer", "message 2, an answer, is empty"),
        ({"query": "q", "response": []}, "no answer", "message 2, an answer, is empty"),
        ({"query": "q", "response": [["r"]]}, "wrong type", "one of several responses is not text: ['r']"),
        ({"query": "q", "response": [None]}, "wrong type", "one of several responses is missing"),
        ({"query": "q", "response": {"text": "r"}}, "wrong type", "response is not text: {'text': 'r'}"),
        ({"query": True, "response": "r"}, "wrong type", "query is not text: True"),
        ({"query": "q", "response": "r", "system": ["s"]}, "wrong type", "system is not text: ['s']"),
        ({"instruction": ["I"], "input": "X", "output": "O"}, "wrong type", "instruction is not text: ['I']"),
        (
            {**GOOD, "history": "q1"},
            "wrong type",
            "history are neither a list nor the text of one: 'q1'",
        ),
        ({**GOOD, "history": 3}, "wrong type", "history is a list of [query, response], not 3"),
        ({**GOOD, "history": ["q1", "r1"]}, "wrong type", "turn 1 of history is 'q1', not [query, response]"),
        ({**GOOD, "history": [["q1"]]}, "wrong type", "turn 1 of history is ['q1'], not [query, response]"),
        ({**GOOD, "history": [["q1", None]]}, "wrong type", "turn 1 of history is missing"),
        ({**GOOD, "history": [["q1", ""]]}, "no answer", "message 2, an answer, is empty"),
        (
            {**GOOD, "history": "[['\\ud800', 'r']]"},
            "wrong type",
            "history are neither a list nor the text of one: \"[['\\\\ud800', 'r']]\"",
        ),
        # messages
        ({"messages": []}, "wrong type", "messages are a list of turns, not []"),
        ({"messages": None}, "wrong type", "messages are a list of turns, not None"),
        ({"messages": PAIR[0]}, "wrong type", "messages are a list of turns, not {'role': 'user', 'content': 'u'}"),
        ({"messages": "hello"}, "wrong type", "messages are neither a list nor the text of one: 'hello'"),
        ({"messages": ["hello"]}, "wrong type", "message 1 is 'hello', not an object with role and content"),
        (
            {"messages": [PAIR]},
            "wrong type",
            "message 1 is [{'role': 'user', 'content': 'u'}, {'role': 'assistant', 'content': 'a'}], "
            "not an object with role and content",
        ),
        ({"messages": [PAIR[0]]}, "no answer", "the last message is not an answer of the assistant"),
        (
            {"messages": [{"role": "system", "content": "s"}]},
            "no answer",
            "the last message is not an answer of the assistant",
        ),
        ({"messages": [PAIR[0], *PAIR]}, "wrong turns", "message 2 is of role user, where an assistant's is due"),
        (
            {"messages": [PAIR[1], *PAIR]},
            "wrong turns",
            "message 1 is of role assistant, where a user's is due",
        ),
        (
            {"messages": [*PAIR, {"role": "system", "content": "s"}]},
            "wrong turns",
            "message 3 is of role system, where a user's is due",
        ),
        (
            {"messages": [{"role": "narrator", "content": "n"}, *PAIR]},
            "wrong turns",
            f"message 1 has role 'narrator'. Choose from: {ROLES}",
        ),
        ({"messages": [{"role": 3, "content": "n"}]}, "wrong turns", f"message 1 has role 3. Choose from: {ROLES}"),
        (
            {"messages": [{"content": "u"}]},
            "wrong turns",
            "message 1 has neither role and content nor human and assistant: columns 'content'",
        ),
        (
            {"conversation": [{"human": "h"}]},
            "wrong turns",
            "message 1 has neither role and content nor human and assistant: columns 'human'",
        ),
        ({"messages": [{"role": "user"}, PAIR[1]]}, "wrong type", "content of message 1 is missing"),
        (says(None), "wrong type", "content of message 1 is missing"),
        (says({"text": "u"}), "wrong type", "content of message 1 is not text: {'text': 'u'}"),
        (says([3]), "wrong type", f"part 1 of content of message 1 is 3, not an object of type {PARTS}"),
        (
            says([{"type": "table"}]),
            "wrong type",
            f"part 1 of content of message 1 is {{'type': 'table'}}, not an object of type {PARTS}",
        ),
        (says([{"type": "text"}]), "wrong type", "part 1 of content of message 1 is missing"),
        (
            {"messages": [PAIR[0], {**PAIR[1], "loss": "no"}]},
            "wrong type",
            "loss of message 2 is true or false, not 'no'",
        ),
        (
            {"messages": [{**PAIR[0], "loss": True}, PAIR[1]]},
            "wrong type",
            "message 1 is of role user: only answers can have loss true",
        ),
        (
            {"messages": [PAIR[0], {**PAIR[1], "loss_scale": 2.0}]},
            "wrong type",
            "message 2 has loss_scale: a message may have loss, true or false",
        ),
        # tools
        (
            {"messages": [PAIR[0], CALL]},
            "tools",
            "arguments of call 1 in tool_calls of message 2 are not JSON: '{broken'",
        ),
        (
            {"messages": [PAIR[0], {**CALL, "tool_calls": [{"id": "1"}]}]},
            "tools",
            "call 1 in tool_calls of message 2 is {'id': '1'}, not an object with name and arguments",
        ),
        (
            {"messages": [{"role": "user", "content": "u", "tool_calls": [{"name": "f"}]}, PAIR[1]]},
            "wrong turns",
            "message 1 is of role user and has tool_calls",
        ),
        (
            {"messages": [PAIR[0], {"role": "function_call", "content": "f(1)"}]},
            "tools",
            "message 2 are neither a list nor the text of one: 'f(1)'",
        ),
        (
            {**GOOD, "tools": "[{broken"},
            "tools",
            "tools is not JSON (unexpected character, expected a string key: line 1 column 3 (char 2)): '[{broken'",
        ),
        (
            {**GOOD, "tools": [{"type": "function"}]},
            "tools",
            "tool 1 is {'type': 'function'}, not an object with a name",
        ),
        ({**GOOD, "tools": 3}, "tools", "tool 1 is 3, not an object with a name"),
        # the worse of two answers
        ({**GOOD, "rejected_response": "r"}, "preference", "the rejected answer equals the chosen one"),
        ({**GOOD, "rejected_response": " "}, "preference", "the rejected answer is empty"),
        ({**GOOD, "rejected_response": ["b"]}, "wrong type", "rejected_response is not text: ['b']"),
        (
            {"messages": PAIR, "rejected_messages": PAIR},
            "preference",
            "the rejected answer equals the chosen one",
        ),
        (
            {"messages": PAIR, "rejected_messages": [{"role": "user", "content": "v"}, {**PAIR[1], "content": "b"}]},
            "preference",
            "rejected_messages do not have the same turns as messages before their last answer",
        ),
        (
            {"messages": PAIR, "rejected_messages": [*PAIR, *PAIR]},
            "preference",
            "messages have 2 turns and rejected_messages 4: they differ in one answer",
        ),
        (
            {
                "messages": [{"role": "system", "content": "s"}, *PAIR],
                "rejected_messages": [{"role": "system", "content": "t"}, PAIR[0], {**PAIR[1], "content": "b"}],
            },
            "preference",
            "rejected_messages have another system message than messages",
        ),
        (
            {"messages": [PAIR[0]], "label": 1, "rejected_response": "b"},
            "preference",
            "there is a rejected answer, but no chosen one",
        ),
        (
            {**GOOD, "tools": {"name": "f", "parameters": DEEP}},
            "tools",
            "tools cannot be written as JSON: Recursion limit reached",
        ),
        ({**GOOD, "tools": {"name": "f", "parameters": DEEPER}}, "wrong type", "a value is nested too deeply"),
        # labels
        ({**GOOD, "label": "good"}, "label", "label is true, false or a whole number from 0, not 'good'"),
        ({**GOOD, "label": 0.5}, "label", "label is true, false or a whole number from 0, not 0.5"),
        ({**GOOD, "label": -1}, "label", "label is true, false or a whole number from 0, not -1"),
        ({**GOOD, "label": [1, 2]}, "label", "label is true, false or a whole number from 0, not [1, 2]"),
        ({**GOOD, "label": 2**63}, "label", f"label is true, false or a whole number from 0, not {2**63}"),
        ({"messages": [PAIR[0]], "label": True}, "no answer", "the last message is not an answer of the assistant"),
        # media
        (
            says("<image><image>u", images=["red.png"]),
            "media",
            "2 tags `<image>` for 1 images",
        ),
        (says("<image>u", images=None), "media", "1 tags `<image>` for 0 images"),
        (says("<video>u", images=["red.png"]), "media", "1 tags `<video>` for 0 videos"),
        (
            says("u", images=[3]),
            "media",
            "image 1 is not a path, a URL, bytes, or an object with one of them: 3",
        ),
        (
            says("u", images=[["red.png"]]),
            "media",
            "image 1 is not a path, a URL, bytes, or an object with one of them: ['red.png']",
        ),
        (
            says("u", images=[{"path": None, "bytes": None}]),
            "media",
            "image 1 is not a path, a URL, bytes, or an object with one of them: {'path': None, 'bytes': None}",
        ),
        (says("u", images="[broken"), "media", "images are neither a list nor the text of one: '[broken'"),
        (says("u", images=[{"bytes": "?"}]), "media", "image 1 is not in base64: '?'"),
        (
            says([{"type": "image", "image": "red.png"}], images=["red.png"]),
            "media",
            "images stand in the turns and in the column images: keep one of them",
        ),
        (says("u", images=["gone.png"]), "media", "image 1, 'gone.png', is not there: looked in DATA"),
        (says("u", images=["/gone/x.png"]), "media", "image 1, '/gone/x.png', is not there"),
        (says("u", images=["."]), "media", "image 1, '.', is a folder"),
        (
            says("u", images=["red.png", "rows.jsonl"]),
            "media",
            "image 2, 'rows.jsonl', is not an image: it begins with b'{\"query\"'",
        ),
        (
            says("u", videos=["red.png"]),
            "media",
            "video 1, 'red.png', is not a video: it begins with b'\\x89PNG\\r\\n\\x1a\\n'",
        ),
        (
            says("u", images=["data:image/png,abc"]),
            "media",
            "image 1 is no data: URI in base64: it does not begin with data:TYPE;base64,",
        ),
        # grounding
        (
            box([1, 2, 3]),
            "objects",
            "bbox of object 1 is [1, 2, 3], not [x_min, y_min, x_max, y_max], [x, y] or a list of these",
        ),
        (
            box(["1", 2, 3, 4]),
            "objects",
            "bbox of object 1 is ['1', 2, 3, 4], not [x_min, y_min, x_max, y_max], [x, y] or a list of these",
        ),
        (box([3, 2, 1, 4]), "objects", "bbox of object 1 is [3, 2, 1, 4], not [x_min, y_min, x_max, y_max]"),
        (
            box([1, 2, 3, 1001], bbox_type="norm_1000"),
            "objects",
            "bbox of object 1 is [1, 2, 3, 1001]: outside of what norm_1000 allows",
        ),
        (
            box([1, 2, 3, 4], bbox_type="pixels"),
            "objects",
            "bbox_type of object 1 is 'pixels'. Choose from: real, norm_1000, norm_1",
        ),
        (
            box([1, 2, 3, 4], image=1),
            "objects",
            "object 1 is in image 1, counted from 0, but the row has 1",
        ),
        (box(None), "objects", "1 tags `<bbox>` for 0 objects with bbox"),
        (
            {**box([1, 2, 3, 4]), "objects": "[broken"},
            "objects",
            "objects are neither a list nor the text of one: '[broken'",
        ),
        ({**box([1, 2, 3, 4]), "objects": ["c"]}, "objects", "object 1 is 'c', not an object with caption and bbox"),
        (
            {**box([1, 2, 3, 4]), "objects": {"refs": ["c"], "bbox": [[1, 2]]}},
            "objects",
            "objects have 'refs'. Choose from: ref, bbox, bbox_type, image_id",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 90 else "",
)
def test_a_row_that_is_no_use_is_named_with_its_reason(bench: Bench, row: Any, kind: str, reason: str) -> None:
    name = bench.lines(GOOD, row, GOOD)
    collector, (dataset,) = bench.collect(name)
    expected = reason.replace("DATA", str(bench.data))
    assert dataset.num_rows == 2
    assert collector.reasons == [f"rows.jsonl row 2: {expected}"]
    assert collector.kinds == {kind: 1}
    dropped = [json.loads(line) for line in (bench.root / "attachments" / "dropped.jsonl").read_text().splitlines()]
    assert [(one["file"], one["row"], one["kind"]) for one in dropped] == [("rows.jsonl", 2, kind)]


def test_parquet_and_csv_rows_have_their_own_ways_of_missing(bench: Bench) -> None:
    table = {"query": ["q", "q", "q"], "response": [1.5, float("nan"), None]}
    pq.write_table(pa.table(table), bench.data / "rows.parquet")
    collector, (dataset,) = bench.collect("rows.parquet")
    assert dataset.num_rows == 1
    assert [reason.partition(". ")[0] for reason in collector.reasons] == [
        "rows.parquet row 2: response is missing",
        "rows.parquet row 3: no response: it has columns 'query', 'response'",
    ]
    assert collector.kinds == {"no answer": 2}


def test_mixed_schemas_are_read_row_by_row(bench: Bench) -> None:
    name = bench.lines(GOOD, {"messages": PAIR}, {"instruction": "I", "input": "X", "output": "O"}, {"text": "t"})
    _, (dataset,) = bench.collect(name)
    write_parquet([(dataset.rows, np.arange(4))], bench.root / "out" / "train.parquet")
    rows = pq.read_table(bench.root / "out" / "train.parquet").to_pylist()
    assert [[turn["content"] for turn in row["messages"]] for row in rows] == [
        ["q", "r"],
        ["u", "a"],
        ["I\nX", "O"],
        ["t"],
    ]


def test_dropped_rows_are_counted_by_kind(bench: Bench) -> None:
    bad = [b"{broken", {"query": "q"}, {"query": "q", "response": ""}, {**GOOD, "label": "x"}]
    collector, _ = bench.collect(bench.lines(GOOD, *bad, *[{"query": "q"}] * 20))
    metrics = collector.finish()
    assert len(metrics.pop("first_dropped").splitlines()) == 10
    assert metrics == {
        "rows_read": 25,
        "rows_dropped": 24,
        "rows_dropped_label": 1,
        "rows_dropped_no_answer": 22,
        "rows_dropped_unreadable": 1,
    }


def test_strict_stops_at_the_first(bench: Bench) -> None:
    with pytest.raises(DataError, match=r"^rows\.jsonl row 3: message 2, an answer, is empty$"):
        bench.collect(bench.lines(GOOD, GOOD, {"query": "q", "response": ""}, b"{broken"), strict=True)


def test_placeholders_that_would_stay_are_an_error_of_the_arguments(bench: Bench) -> None:
    name = bench.lines(GOOD, {"query": "Who are you?", "response": "I am {{NAME}}."})
    message = r"^rows\.jsonl row 2: \{\{NAME\}\} would stay as it is: .*`--model_name` and `--model_author`"
    with pytest.raises(DataError, match=message):
        bench.collect(name)


def test_self_cognition_rows_get_the_names(bench: Bench) -> None:
    name = bench.lines(
        {"query": "Who are you?", "response": "I am {{NAME}} by {{AUTHOR}}.", "tag": "en"},
        {"query": "Hi", "response": "{{NAME}}", "tag": "zh"},
    )
    collector, (dataset,) = bench.collect(name, names=SelfCognition(["小燕", "Swift"], ["Martin"]))
    write_parquet([(dataset.rows, np.arange(2))], bench.root / "out" / "train.parquet")
    rows = pq.read_table(bench.root / "out" / "train.parquet").to_pylist()
    assert [row["messages"][1]["content"] for row in rows] == ["I am Swift by Martin.", "小燕"]
    assert collector.maker.names.num_filled == 2


def test_media_that_are_on_another_machine_are_said_to_be_handed_in_with_a_folder(bench: Bench) -> None:
    message = (
        r"row 1: image 1, 'gone\.png', is not there: looked in /.*/data\. Give `--dataset` the folder that holds rows"
    )
    with pytest.raises(DataError, match=message):
        bench.collect(bench.lines({**GOOD, "images": ["gone.png"]}))


def test_media_go_into_the_artifact_once(bench: Bench) -> None:
    """Found beside the user's own file, although only the data file itself was handed in."""
    name = bench.lines(
        {**GOOD, "images": ["red.png", str(bench.data / "red.png")]}, {**GOOD, "images": ["https://h/x.png"]}, GOOD
    )
    _, (dataset,) = bench.collect(name)
    write_parquet([(dataset.rows, np.arange(3))], bench.root / "out" / "train.parquet")
    (kept,) = (bench.root / "out" / "media").iterdir()
    assert kept.read_bytes() == (bench.data / "red.png").read_bytes()
    assert pq.read_table(bench.root / "out" / "train.parquet")["images"].to_pylist() == [
        [f"media/{kept.name}"] * 2,
        ["https://h/x.png"],
        None,
    ]
