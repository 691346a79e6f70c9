"""Which tokens are trained and how strongly, in rows that are encoded together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.data.encode import NOT_TRAINED, EncodedRow, EncoderSettings, Part, RowEncoder, encode_all, open_encoder
from stages.data.templates.rendered import TemplateSettings
from stages.data.tokenizer import load_tokenizer

Row = dict[str, Any]
HEAD = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def row(question: str, answer: str, **columns: Any) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **columns}


def opened(model: Path, max_length: int | None = None, truncation: Any = "left", **template: Any) -> RowEncoder:
    return open_encoder(model, EncoderSettings(TemplateSettings(**template), max_length, truncation))


def trained(model: Path, ids: Any, labels: Any) -> tuple[str, str]:
    """The text, and what of it is trained."""
    tokenizer = load_tokenizer(model).tokenizer
    kept = [token for token, label in zip(ids, labels, strict=True) if label != NOT_TRAINED]
    return tokenizer.decode(list(ids), skip_special_tokens=False), tokenizer.decode(kept, skip_special_tokens=False)


def rows_of(part: Part) -> list[list[int]]:
    return [part.ids[a:b].tolist() for a, b in zip(part.offsets[:-1], part.offsets[1:], strict=True)]


def test_each_row_is_what_it_is_by_itself(tiny_model: Path) -> None:
    encoder = opened(tiny_model)
    rows = [row("red", "sky"), row("", "é 🎉 sky"), row("blue " * 40, " x\n"), row("今天", "你好")]
    batch = encoder.encode(rows)
    alone = [encoder.encode_row(one) for one in rows]
    for number, one in enumerate(alone):
        assert isinstance(one, EncodedRow)
        a, b = batch.chosen.offsets[number : number + 2]
        assert batch.chosen.ids[a:b].tolist() == one.input_ids.tolist()
        assert batch.chosen.labels[a:b].tolist() == one.labels.tolist()
        text, learnt = trained(tiny_model, one.input_ids, one.labels)
        question, answer = (turn["content"] for turn in rows[number]["messages"])
        assert text == HEAD.format(question) + answer + "<|im_end|>\n"
        assert learnt == answer + "<|im_end|>"
    assert batch.rows.tolist() == [1, 2, 3, 4]
    assert (batch.rejected, batch.labels, list(batch.dropped)) == (None, None, [])


def test_both_answers_of_a_preference(tiny_model: Path) -> None:
    batch = opened(tiny_model).encode(
        [row("red", "sky", rejected_response="sea"), row("a", "b"), row("c", "d", label=1)]
    )
    assert batch.rejected is not None
    assert batch.rejected.offsets[1:].tolist() == [batch.rejected.offsets[1]] * 3, "only the first has one"
    text, learnt = trained(tiny_model, batch.rejected.ids, batch.rejected.labels)
    assert (text, learnt) == (HEAD.format("red") + "sea<|im_end|>\n", "sea<|im_end|>")
    assert trained(tiny_model, rows_of(batch.chosen)[0], rows_of(batch.chosen)[0])[0].endswith("sky<|im_end|>\n")
    assert batch.labels == [None, None, 1]


@pytest.mark.parametrize(("chosen", "rejected"), [("sky", "sea " * 50), ("sky " * 50, "sea")])
def test_a_pair_is_dropped_if_either_answer_is_too_long(tiny_model: Path, chosen: str, rejected: str) -> None:
    encoder = opened(tiny_model, 40, "delete")
    batch = encoder.encode([row("a", "b"), row("red", chosen, rejected_response=rejected), row("a", "b")])
    assert batch.rows.tolist() == [1, 3]
    assert [(one.row, one.kind) for one in batch.dropped] == [(2, "too long")]
    assert encoder.encode_row(row("red", chosen, rejected_response=rejected)) == "too long"


def test_the_left_is_cut_and_what_has_no_label_left_is_dropped(tiny_model: Path) -> None:
    encoder = opened(tiny_model, 6)
    long = encoder.encode_row(row("red " * 50, "sky blue sea today"))
    assert isinstance(long, EncodedRow)
    whole = opened(tiny_model).encode_row(row("red " * 50, "sky blue sea today"))
    assert isinstance(whole, EncodedRow)
    assert long.input_ids.tolist() == whole.input_ids[-6:].tolist()
    assert long.labels.tolist() == whole.labels[-6:].tolist()
    batch = encoder.encode([row("a", "b"), row("red " * 50, "sky blue sea")])
    assert batch.num_truncated == 2
    # Of a single token nothing is predicted.
    for limit in (1, 2):
        assert opened(tiny_model, limit).encode_row(row("a", "b")) == "nothing to train"
    assert opened(tiny_model, 3).encode_row(row("a", "b")) != "nothing to train", "the end of the turn is"


def test_a_row_that_cannot_be_written_is_named(tiny_model: Path) -> None:
    batch = opened(tiny_model, template="gemma", system=None).encode(
        [row("a", "b"), {"messages": [{"role": "user", "content": "x"}]}], first=7
    )
    kept = batch.rows.tolist()
    assert kept[0] == 7
    assert [one.row for one in batch.dropped] == [8]
    assert batch.dropped[0].kind in ("cannot be rendered", "nothing to train")


def test_weights_are_those_of_the_spans(tiny_model: Path) -> None:
    encoder = opened(tiny_model, loss_scale="react")
    answer = "Thought: red\nAction: sky\nAction Input: {}\n"
    one = encoder.encode_row(row("q", answer))
    assert isinstance(one, EncodedRow)
    assert one.loss_scale is not None
    found: dict[float, list[int]] = {}
    for token, weight in zip(one.input_ids.tolist(), one.loss_scale.tolist(), strict=True):
        found.setdefault(weight, []).append(token)
    tokenizer = load_tokenizer(tiny_model).tokenizer
    texts = {weight: tokenizer.decode(ids, skip_special_tokens=False) for weight, ids in found.items()}
    assert texts == {
        0.0: HEAD.format("q") + "\n",
        1.0: "Thought: red\n<|im_end|>",
        2.0: "Action: sky\nAction Input: {}\n",
    }
    assert ((one.labels != NOT_TRAINED) == (one.loss_scale > 0)).all()


@pytest.mark.parametrize("num_threads", [1, 3])
def test_chunks_come_in_order_whatever_their_number(tiny_model: Path, num_threads: int) -> None:
    rows = [row(f"red {n}", f"sky {n * n}") for n in range(1100)]
    seen: list[int] = []
    encoder = opened(tiny_model)
    split = [rows[:700], rows[700:701], rows[701:]]
    batches = list(encode_all(encoder, split, num_threads=num_threads, look=lambda number, _: seen.append(number)))
    assert np.concatenate([batch.rows for batch in batches]).tolist() == list(range(1, 1101))
    assert seen == list(range(1, 1101))
    together = [ids for batch in batches for ids in rows_of(batch.chosen)]
    assert together == rows_of(encoder.encode(rows).chosen)


def test_settings_are_read_as_they_were_written() -> None:
    settings = EncoderSettings(TemplateSettings(template="chatml", system="“s”"), 7, "delete", 100, packing=True)
    assert EncoderSettings.from_json(settings.to_json()) == settings
