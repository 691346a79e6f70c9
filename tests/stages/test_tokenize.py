from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.arguments import TokenizeArguments
from stages.artifacts.store import LocalStore
from stages.context import Context
from stages.data.tokenizer import load_tokenizer
from stages.errors import ArgumentsError, DataError, ModelError, UserError
from stages.run import StageResult, run_stage
from stages.tokenize import STAGE, tokenize

Row = dict[str, Any]
ONE = [{"role": "user", "content": "what is red"}, {"role": "assistant", "content": "the sky"}]
TWO = [
    {"role": "system", "content": "answer"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "\n two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "blue sea 🎉"},
]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def write_rows(folder: Path, train: list[Any], validation: list[Any] = (), **columns: Any) -> Path:  # type: ignore[assignment]
    folder.mkdir(exist_ok=True)
    for name, rows in (("train", train), ("validation", validation)):
        if rows:
            pq.write_table(pa.table({"messages": rows, **columns}), folder / f"{name}.parquet")
    return folder


def run(model: Path, dataset: Path, tmp_path: Path, **arguments: Any) -> tuple[Path, dict[str, Any]]:
    out = tmp_path / "out"
    for folder in (out, tmp_path / "scratch", tmp_path / "attachments"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    context = Context(tmp_path / "scratch", tmp_path / "attachments")
    return out, tokenize(TokenizeArguments(**arguments), {"dataset": dataset, "model": model}, out, context)


def read_tokens(path: Path) -> pa.Table:
    """By memory map, as training opens it."""
    with pa.ipc.open_stream(pa.memory_map(str(path))) as reader:
        return reader.read_all()


def texts(model: Path, path: Path) -> list[tuple[str, list[str]]]:
    """For each row, its text and the runs of tokens that have a label."""
    tokenizer = load_tokenizer(model).tokenizer
    found = []
    for row in read_tokens(path).to_pylist():
        assert len(row["input_ids"]) == len(row["labels"]) == row["length"]
        runs: list[list[int]] = []
        for before, token, label in zip([-100, *row["labels"]], row["input_ids"], row["labels"], strict=False):
            assert label in (-100, token)
            if label != -100:
                if before == -100:
                    runs.append([])
                runs[-1].append(token)
        text = tokenizer.decode(row["input_ids"], skip_special_tokens=False)
        found.append((text, [tokenizer.decode(run, skip_special_tokens=False) for run in runs]))
    return found


def test_what_the_assistant_says_and_its_end_are_trained(model: Path, tmp_path: Path) -> None:
    out, metrics = run(model, write_rows(tmp_path / "rows", [ONE, TWO], [ONE]), tmp_path)
    assert texts(model, out / "train.arrow") == [
        ("<|im_start|>user\nwhat is red<|im_end|>\n<|im_start|>assistant\nthe sky<|im_end|>\n", ["the sky<|im_end|>"]),
        (
            "<|im_start|>system\nanswer<|im_end|>\n<|im_start|>user\none<|im_end|>\n"
            "<|im_start|>assistant\n\n two<|im_end|>\n"
            "<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\nblue sea 🎉<|im_end|>\n",
            ["\n two<|im_end|>", "blue sea 🎉<|im_end|>"],
        ),
    ]
    assert (metrics["train_rows"], metrics["validation_rows"], metrics["train_dropped"]) == (2, 1, 0)
    table = read_tokens(out / "train.arrow")
    assert {field.name: str(field.type) for field in table.schema} == {
        "input_ids": "list<item: int32>",
        "labels": "list<item: int32>",
        "length": "int32",
        "row": "int64",
    }
    assert table["row"].to_pylist() == [0, 1]
    assert metrics["train_tokens"] == sum(table["length"].to_pylist())
    assert metrics["train_trained_tokens"] == sum(label != -100 for row in table["labels"].to_pylist() for label in row)
    assert (tmp_path / "attachments" / "token-lengths.png").read_bytes().startswith(b"\x89PNG")


def test_the_ids_are_those_that_serving_gives(model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    out, _ = run(model, write_rows(tmp_path / "rows", [ONE, TWO]), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(model)
    for row, messages in zip(read_tokens(out / "train.arrow").to_pylist(), [ONE, TWO], strict=True):
        assert row["input_ids"] == tokenizer.apply_chat_template(messages, return_dict=False)
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        assert row["input_ids"][: len(prompt)] == prompt


def test_a_token_that_joins_the_header_to_the_answer_is_not_trained(model: Path, tmp_path: Path) -> None:
    """A newline at the answer's beginning may melt into the header's: the model cannot write a part of a token."""
    from tokenizers import Tokenizer

    state = json.loads((model / "tokenizer.json").read_text())
    state["model"]["vocab"]["ĊĊ"] = 384
    state["model"]["merges"].insert(0, ["Ċ", "Ċ"])
    (model / "tokenizer.json").write_text(json.dumps(state))
    assert Tokenizer.from_file(str(model / "tokenizer.json")).encode("a\n\n\nb").tokens == ["a", "ĊĊ", "Ċ", "b"]
    messages = [ONE[0], {"role": "assistant", "content": "\n\nsky"}]
    out, _ = run(model, write_rows(tmp_path / "rows", [messages]), tmp_path)
    assert texts(model, out / "train.arrow")[0][1] == ["\nsky<|im_end|>"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"max_length": 8, "truncation_strategy": "left"}, [("ay<|im_end|>\n", ["ay<|im_end|>"])]),
        ({"max_length": 8, "truncation_strategy": "delete"}, None),
        ({"max_length": 1}, None),
    ],
)
def test_longer_rows_are_cut_or_dropped(
    model: Path, tmp_path: Path, arguments: dict[str, Any], expected: list[Any] | None
) -> None:
    long = [ONE[0], {"role": "assistant", "content": "the sky is red today"}]
    dataset = write_rows(tmp_path / "rows", [long])
    if expected is None:
        with pytest.raises(DataError, match=r"no row is left to train on: 1 (too long|nothing to train) \(max_length"):
            run(model, dataset, tmp_path, **arguments)
        return
    out, metrics = run(model, dataset, tmp_path, **arguments)
    found = texts(model, out / "train.arrow")
    assert len(read_tokens(out / "train.arrow")["input_ids"][0]) == 8
    assert found[0][0].endswith("<|im_end|>\n")
    assert found[0][1][0].endswith("<|im_end|>")
    assert metrics["train_truncated"] == 1


def test_dropped_rows_are_counted_by_their_reason(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}"
    )
    tool = [*ONE, {"role": "tool", "content": "t"}, {"role": "assistant", "content": "a"}]
    long = [ONE[0], {"role": "assistant", "content": "red " * 100}]
    dataset = write_rows(tmp_path / "rows", [ONE, tool, long])
    _, metrics = run(model, dataset, tmp_path, max_length=30, truncation_strategy="delete")
    assert metrics["train_rows"] == 1
    assert metrics["train_dropped"] == 2
    assert metrics["train_dropped_too_long"] == 1
    assert metrics["train_dropped_cannot_be_rendered"] == 1
    assert metrics["train_first_dropped"].startswith("train.parquet row 2: the chat template refuses it")
    with pytest.raises(DataError, match=r"train\.parquet row 2: the chat template refuses it: TemplateError: no tools"):
        run(model, dataset, tmp_path, strict=True)


@pytest.mark.parametrize(
    ("system", "begins"),
    [
        (None, "<|im_start|>user"),
        ("red", "<|im_start|>system\nred<|im_end|>\n<|im_start|>user"),
        ("", "<|im_start|>user"),
    ],
)
def test_the_system_message_is_the_arguments(model: Path, tmp_path: Path, system: str | None, begins: str) -> None:
    out, _ = run(model, write_rows(tmp_path / "rows", [ONE]), tmp_path, system=system)
    assert texts(model, out / "train.arrow")[0][0].startswith(begins)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_number_of_threads_changes_nothing(model: Path, tmp_path: Path, count: int) -> None:
    rows = [
        [{"role": "user", "content": f"red {n}"}, {"role": "assistant", "content": f"sky {n * n}"}] for n in range(1500)
    ]
    dataset = write_rows(tmp_path / "rows", rows, rows[:10])
    one, _ = run(model, dataset, tmp_path)
    expected = {path.name: path.read_bytes() for path in one.iterdir()}
    out, _ = run(model, dataset, tmp_path, dataset_num_proc=count)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == expected
    assert [row[1] for row in texts(model, out / "train.arrow")] == [[f"sky {n * n}<|im_end|>"] for n in range(1500)]


def without_template(model: Path) -> None:
    (model / "chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("spoil", "columns", "arguments", "error", "message"),
    [
        (without_template, {}, {}, ModelError, "the model has no chat template. Name one with `--template`"),
        (
            None,
            {"images": [["media/x.jpg"]]},
            {"packing": True},
            DataError,
            "rows with images are encoded when they are needed: drop `--packing`",
        ),
        (
            None,
            {"images": [["media/x.jpg"]]},
            {"lazy_tokenize": False},
            DataError,
            "rows with images are encoded when they are needed: drop `--lazy_tokenize false`",
        ),
        (None, {"images": [["media/x.jpg"]]}, {}, ModelError, "no processor"),
        (None, {}, {"template": "nowhere"}, ArgumentsError, "nowhere"),
        (
            lambda model: (model / "chat_template.jinja").write_text("{{ messages[0].content }}"),
            {},
            {},
            ModelError,
            "does not write the answer as it is",
        ),
        (
            lambda model: (model / "chat_template.jinja").write_text(
                "{% for m in messages[-2:] %}{{ m.content }}{% endfor %}"
            ),
            {},
            {"system": "red"},
            UserError,
            "has no place for `--system",
        ),
    ],
)
def test_what_cannot_be_tokenized_is_one_clear_line(
    model: Path,
    tmp_path: Path,
    spoil: Any,
    columns: dict[str, Any],
    arguments: dict[str, Any],
    error: Any,
    message: str,
) -> None:
    if spoil:
        spoil(model)
    dataset = write_rows(tmp_path / "rows", [ONE], **columns)
    with pytest.raises(error, match=message) as caught:
        run(model, dataset, tmp_path, **arguments)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_rows_that_are_not_standard_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "rows" / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet holds no standard rows: make them with the stage preprocess"):
        run(model, tmp_path / "rows", tmp_path)


def test_tokens_stay_cached_when_only_the_weights_change(store: LocalStore, model: Path, tmp_path: Path) -> None:
    dataset = store.put(write_rows(tmp_path / "rows", [ONE]), "dataset")

    def tokens() -> StageResult:
        inputs = {"dataset": dataset, "model": store.put(model, "model")}
        return run_stage(STAGE, TokenizeArguments(), inputs, store=store)

    first = tokens()
    (model / "model.safetensors").write_bytes(b"other weights")
    assert (tokens().status, tokens().artifact) == ("cached", first.artifact)
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    assert tokens().status == "ran"


def test_a_tool_turn_without_tools_is_exported_too(model: Path, tmp_path: Path) -> None:
    tool = [*ONE, {"role": "tool", "content": "red"}, {"role": "assistant", "content": "blue"}]
    out, metrics = run(
        model, write_rows(tmp_path / "rows", [ONE, tool]), tmp_path, template="chatml", tools_prompt="hermes"
    )
    assert metrics["train_rows"] == 2
    assert "tool_response" in (out / "chat_template.jinja").read_text()
    assert "<tool_response>\nred\n</tool_response>" in texts(model, out / "train.arrow")[1][0]


@pytest.mark.parametrize(("packing", "packs"), [(True, [[2], [1, 0]]), (False, None)])
def test_packs(model: Path, tmp_path: Path, packing: bool, packs: list[list[int]] | None) -> None:
    rows = [[ONE[0], {"role": "assistant", "content": "sky " * n}] for n in (3, 20, 30)]
    alone, _ = run(model, write_rows(tmp_path / "rows", rows), tmp_path)
    lengths = read_tokens(alone / "train.arrow")["length"].to_pylist()
    out, metrics = run(model, tmp_path / "rows", tmp_path, packing=packing, max_length=lengths[0] + lengths[1])
    if packs is None:
        assert not (out / "train_packs.arrow").exists()
        return
    assert read_tokens(out / "train_packs.arrow")["rows"].to_pylist() == packs
    assert metrics["train_packs"] == 2
    assert metrics["packs_filled"] == round(sum(lengths) / (2 * (lengths[0] + lengths[1])), 4)


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_that_are_encoded_later_go_on_with_all_that_it_takes(model: Path, tmp_path: Path, streaming: bool) -> None:
    import logging

    from stages.arguments import PreprocessArguments
    from stages.data.encode import EncoderSettings, open_encoder
    from stages.preprocess import STAGE as PREPROCESS
    from stages.preprocess import prepare, preprocess

    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps({"messages": ONE}) + "\n" for _ in range(5)))
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    if streaming:
        prepared = prepare(PreprocessArguments(dataset=[str(source)], streaming=True))
        (tmp_path / "work").mkdir()
        (tmp_path / "in").mkdir()
        shutil.copy(source, tmp_path / "in")
        context = Context(tmp_path / "work", tmp_path / "work", logging.getLogger("test"))
        preprocess(prepared.arguments, {"dataset": tmp_path / "in"}, dataset, context)
    else:
        write_rows(dataset, [ONE, [*ONE[:1], {"role": "assistant", "content": ""}]], [ONE])
    out, metrics = run(model, dataset, tmp_path, lazy_tokenize=None if streaming else True, max_length=64)
    assert not (out / "train.arrow").exists()
    assert (out / ("stream.json" if streaming else "validation.parquet")).exists()
    assert metrics["rows_tried"] == (5 if streaming else 2)
    settings = EncoderSettings.from_json((out / "encoder.json").read_text())
    assert settings.max_length == 64
    assert settings.versions.keys() == {"tokenize", *STAGE.libraries}, "else train would not run again with new ones"
    assert not streaming or json.loads((out / "stream.json").read_text())["version"] == PREPROCESS.version
    encoded = open_encoder(model, settings).encode_row({"messages": ONE})
    eager, _ = run(model, write_rows(tmp_path / "eager", [ONE]), tmp_path, max_length=64)
    assert not isinstance(encoded, str)
    assert open_encoder(model, settings).codec.name == "tokenizers"  # what was trained on cannot be taken back
    assert encoded.input_ids.tolist() == read_tokens(eager / "train.arrow")["input_ids"][0].as_py()


def test_rows_without_an_answer_are_named_not_trained(model: Path, tmp_path: Path) -> None:
    dataset = write_rows(tmp_path / "rows", [ONE[:1], ONE], label=[1, 0])
    _, metrics = run(model, dataset, tmp_path)
    assert metrics["train_rows"] == 1
    assert metrics["train_first_dropped"] == "train.parquet row 1: nothing to train"
    with pytest.raises(DataError, match="no row is left to train on: 1 nothing to train"):
        run(model, write_rows(tmp_path / "none", [ONE[:1]], label=[1]), tmp_path)


@pytest.mark.parametrize(("template", "warned"), [("llama3", True), ("chatml", False), (None, False)])
def test_a_template_whose_end_the_model_does_not_know_is_said(
    model: Path, tmp_path: Path, template: str | None, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    run(model, write_rows(tmp_path / "rows", [ONE]), tmp_path, template=template)
    assert ("ends an answer with <|eot_id|>, which is no token of this model" in caplog.text) == warned
