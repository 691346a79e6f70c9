"""Answers generated in validation: those of a loop written out, whatever the batches; training does not notice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import TrainArguments
from stages.errors import ArgumentsError, DataError, UserError
from stages.training.answers import last_answer
from tests.stages.training.lab import SHORT, Lab, cut_off_and_whole, digests
from tests.stages.training.later import write_eager, write_lazy, write_stream
from tests.stages.training.taught import ROWS, STILL, predictions, scores_by_hand, teach
from tests.stages.training.tokens import write_arrow
from tests.stages.vision import picture_row, write_picture

X = -100
QUESTIONS = [*ROWS[:4], ("hello world, what is the sea", "Paris is the capital.")]
ANSWERS = STILL | {"predict_with_generate": True, "max_new_tokens": 12, "per_device_eval_batch_size": 2}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return write_eager(tmp_path_factory.mktemp("tokens") / "tokens", ROWS, QUESTIONS, tiny_model)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tokens: Path) -> Path:
    return teach(tmp_path_factory.mktemp("model"), tiny_model, tokens)


def by_hand(model: Path, questions: list[str], count: int) -> list[str]:
    """The likeliest token again and again, each question by itself, without a cache."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    texts = []
    for question in questions:
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        ids, made = tokenizer(prompt)["input_ids"], []
        while len(made) < count and end not in made:
            with torch.no_grad():
                made.append(int(network(torch.tensor([ids + made])).logits[0, -1].argmax()))
        texts.append(tokenizer.decode(made, skip_special_tokens=True))
    return texts


@pytest.mark.parametrize("batch", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)])
def test_answers_are_the_likeliest_tokens(tmp_path: Path, model: Path, tokens: Path, batch: int) -> None:
    lab = Lab(tmp_path, model, tokens)
    metrics = lab.run(ANSWERS | {"per_device_eval_batch_size": batch})
    lines = predictions(lab)
    assert [line["response"] for line in lines] == by_hand(model, [question for question, _ in QUESTIONS], 12)
    assert len({line["response"] for line in lines}) > 1
    assert [line["label"] for line in lines] == [answer for _, answer in QUESTIONS]
    assert lines[0]["query"] == "<|im_start|>user\nwhat is red<|im_end|>\n<|im_start|>assistant\n"
    assert {line["global_step"] for line in lines} == {1}
    expected = scores_by_hand([(line["response"], line["label"]) for line in lines])
    assert {name: metrics[f"eval_{name}"] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert 0 < metrics["eval_rouge-l"] < 100
    assert {"eval_loss", "eval_token_acc"} <= metrics.keys()


@pytest.mark.slow
def test_training_does_not_notice(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    """Answers by chance leave the random state alone, come again with the seed, and change with it."""
    noisy = SHORT | {"lora_dropout": 0.2, "max_steps": 4, "save_strategy": "no", "eval_strategy": "steps"}
    noisy |= {"eval_steps": 2, "per_device_eval_batch_size": 2}
    sampled = noisy | {"predict_with_generate": True, "temperature": 1.5, "max_new_tokens": 8}
    plain, one, other = (Lab(tmp_path / name, tiny_model, tokens) for name in ("plain", "one", "other"))
    metrics = plain.run(noisy)
    generated = one.run(sampled)
    assert digests(plain.out) == digests(one.out)
    assert metrics.items() <= generated.items()
    other.run(sampled)
    assert predictions(one) == predictions(other)
    third = Lab(tmp_path / "third", tiny_model, tokens)
    third.run(sampled | {"seed": 43, "data_seed": 42})
    assert [line["response"] for line in predictions(third)] != [line["response"] for line in predictions(one)]
    assert len({line["response"] for line in predictions(one)}) > 3


def test_cut_off_with_answers_by_chance(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    arguments = SHORT | {"lora_dropout": 0.2, "predict_with_generate": True, "temperature": 1.0, "max_new_tokens": 6}
    arguments |= {"per_device_eval_batch_size": 3, "load_best_model_at_end": True}
    lab, whole, metrics = cut_off_and_whole(tmp_path, tiny_model, tokens, arguments)
    assert predictions(lab) == predictions(whole)
    assert [line["global_step"] for line in predictions(lab)] == [2] * 5 + [4] * 5 + [6] * 5
    assert "best_step" in metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [{"num_beams": 3}, {"repetition_penalty": 1.3}, {"generation_num_beams": 2, "max_new_tokens": 4}],
)
def test_other_ways_are_transformers_own(tmp_path: Path, model: Path, tokens: Path, given: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    lab = Lab(tmp_path, model, tokens)
    lab.run(ANSWERS | given)
    names = {"generation_num_beams": "num_beams"}
    wanted = {"max_new_tokens": 12} | {names.get(name, name): value for name, value in given.items()}
    for line in predictions(lab):
        ids = torch.tensor([tokenizer(line["query"])["input_ids"]])
        made = network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **wanted)
        assert line["response"] == tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.slow
def test_stop_words_end_an_answer_and_are_no_part_of_it(tmp_path: Path, model: Path, tokens: Path) -> None:
    whole, lab = Lab(tmp_path / "whole", model, tokens), Lab(tmp_path / "stopped", model, tokens)
    whole.run(ANSWERS)
    lab.run(ANSWERS | {"stop_words": ["d", "."]})
    shorter = [line["response"] for line in predictions(lab)]
    assert shorter == [line["response"].split("d")[0].split(".")[0] for line in predictions(whole)]
    assert shorter != [line["response"] for line in predictions(whole)]


@pytest.mark.slow
def test_an_adapter_answers_too(tmp_path: Path, model: Path, tokens: Path) -> None:
    """And with gradient checkpointing, whose forward pass has no cache in training."""
    lab = Lab(tmp_path, model, tokens)
    lab.run(ANSWERS | {"train_type": "lora", "gradient_checkpointing": True})
    assert [line["response"] for line in predictions(lab)] == by_hand(model, [one for one, _ in QUESTIONS], 12)


def test_lazy_rows_are_answered_and_unusable_ones_are_not(tmp_path: Path, model: Path) -> None:
    lazy = write_lazy(tmp_path / "lazy", ROWS, [QUESTIONS[0], ("what?", "world " * 300), QUESTIONS[4]])
    lab = Lab(tmp_path, model, lazy)
    lab.run(ANSWERS | {"per_device_eval_batch_size": 3})
    assert [line["label"] for line in predictions(lab)] == [QUESTIONS[0][1], QUESTIONS[4][1]]
    assert [line["response"] for line in predictions(lab)] == by_hand(model, [QUESTIONS[0][0], QUESTIONS[4][0]], 12)


@pytest.mark.slow
def test_a_stream_is_validated_on_answers(tmp_path: Path, model: Path) -> None:
    stream = write_stream(tmp_path / "stream", ROWS)
    shutil.copy(write_lazy(tmp_path / "lazy", ROWS, QUESTIONS) / "validation.parquet", stream)
    lab = Lab(tmp_path, model, stream)
    metrics = lab.run(ANSWERS)
    assert [line["response"] for line in predictions(lab)] == by_hand(model, [one for one, _ in QUESTIONS], 12)
    assert metrics["eval_rouge-l"] > 0


@pytest.mark.slow
def test_pictures_are_seen(tmp_path: Path, tiny_qwen2_vl: Path) -> None:
    """Each row is answered as it is by itself, with its picture, and text is among them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stages.data.encode import EncoderSettings

    tokens = tmp_path / "tokens"
    rows = [
        picture_row(write_picture(tokens / "media" / "red.png", (60, 40), "red"), "red square"),
        {"messages": [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "one two"}]},
        picture_row(write_picture(tokens / "media" / "blue.png", (90, 90), "blue"), "blue circle it is."),
    ]
    for name in ("train", "validation"):
        pq.write_table(pa.Table.from_pylist(rows), tokens / f"{name}.parquet")
    (tokens / "encoder.json").write_text(EncoderSettings().to_json())
    found = []
    for batch in (1, 3):
        lab = Lab(tmp_path / str(batch), tiny_qwen2_vl, tokens)
        lab.run(ANSWERS | {"train_type": "lora", "per_device_eval_batch_size": batch})
        found.append([(line["response"], line["label"]) for line in predictions(lab)])
    assert found[0] == found[1]
    assert [label for _, label in found[0]] == ["red square", "one two", "blue circle it is."]
    assert len({response for response, _ in found[0]}) == 3


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([X, X, 1, 2], (2, 4)),
        ([X, 1, 2, X, X, 3, X], (5, 6)),
        ([X, 1], (1, 2)),
        ([X, 1, X, 2, 3], (3, 5)),
        ([1, 2, 3], (0, 3)),
        ([X, X], (0, 0)),
        ([], (0, 0)),
    ],
)
def test_the_last_answer(labels: list[int], expected: tuple[int, int]) -> None:
    assert last_answer(labels) == expected


PLUGIN = """
from stages.training.plugins import register_metric

@register_metric("letters")
def letters(context):
    end = context.tokenizer.convert_tokens_to_ids("<|im_end|>")

    def metric(predicted):
        ends = sum(end in ids for ids in predicted.labels)
        return {"letters": sum(map(len, predicted.texts)), "wanted": sum(map(len, predicted.references)), "ends": ends}

    return metric, True

@register_metric("firsts")
def firsts(context):
    def metric(predicted):
        pairs = zip(predicted.predictions, predicted.labels, strict=True)
        return {"firsts": sum(int(one[0] == other[0]) for one, other in pairs), "rows": len(predicted.labels)}

    return metric, False

@register_metric("broken")
def broken(context):
    return lambda predicted: {"x": 1 / 0}, False

@register_metric("words")
def words(context):
    return lambda predicted: {"x": "many"}, False
"""


@pytest.fixture
def plugged(tmp_path: Path, model: Path, tokens: Path) -> Iterator[Lab]:
    from stages.data.plugins import load_plugins

    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "mine.py").write_text(PLUGIN)
    lab = Lab(tmp_path, model, tokens)
    lab.inputs["plugins"] = tmp_path / "plugins"
    yield lab
    load_plugins([])


HANDED_IN = {"custom_register_path": ["local::plugins"]}


@pytest.mark.slow
def test_a_metric_of_the_users_own(plugged: Lab, model: Path) -> None:
    metrics = plugged.run(ANSWERS | HANDED_IN | {"metric": "letters", "metric_for_best_model": "letters"})
    answers = by_hand(model, [one for one, _ in QUESTIONS], 12)
    assert metrics["eval_letters"] == metrics["best_metric"] == sum(map(len, answers))
    assert metrics["eval_wanted"] == sum(len(answer) for _, answer in QUESTIONS)
    assert metrics["eval_ends"] == 5
    assert "eval_rouge-l" not in metrics

    shutil.rmtree(plugged.scratch)
    metrics = plugged.run(STILL | HANDED_IN | {"metric": "firsts", "per_device_eval_batch_size": 2})
    assert metrics["eval_rows"] == 5
    pairs = zip(answers, QUESTIONS, strict=True)
    assert metrics["eval_firsts"] == sum(answer[:1] == label[:1] for answer, (_, label) in pairs)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"metric": "letters"}, "`--metric letters` compares generated answers: add `--predict_with_generate true`"),
        ({"metric": "lettres"}, "`--metric lettres`: no file of `--custom_register_path` registers it. Choose from"),
    ],
)
def test_a_metric_that_cannot_be(plugged: Lab, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        plugged.run(STILL | HANDED_IN | arguments)
    assert str(caught.value).startswith(said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "said"),
    [("broken", "mine.py line 24: ZeroDivisionError"), ("words", "the metric gave {'x': 'many'}, not numbers by name")],
)
def test_a_metric_that_fails_is_one_line(plugged: Lab, metric: str, said: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        plugged.run(STILL | HANDED_IN | {"metric": metric})
    assert said in str(caught.value)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"metric": "nlg"}, "`--metric nlg` compares generated answers: add `--predict_with_generate true`"),
    ({"generation_max_length": 9}, "`--generation_max_length` counts the prompt too"),
    ({"generation_config": "x.json"}, "`--generation_config` names a file: give what it says by flags"),
    ({"sortish_sampler": True}, "`--sortish_sampler`: transformers has given it up"),
    (
        {"predict_with_generate": True, "num_beams": 2, "generation_num_beams": 3},
        "`--generation_num_beams 3` and `--num_beams 2` are one parameter",
    ),
]


@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_what_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        TrainArguments(**given)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("name", ["temperature", "top_k", "stop_words", "generation_num_beams"])
def test_how_to_generate_is_for_those_who_do(name: str) -> None:
    from stages.arguments import SftArguments

    given = {name: ["a"] if name == "stop_words" else 2}
    with pytest.raises(ArgumentsError, match=f"`--{name}` is for generated answers, and none are generated: add"):
        SftArguments(model="m", dataset=["d"], **given)
    assert name not in TrainArguments(**given).key_fields()
    assert (
        TrainArguments(predict_with_generate=True, **given).key_fields()
        != TrainArguments(predict_with_generate=True).key_fields()
    )


@pytest.mark.parametrize("validates", [True, False])
def test_there_must_be_something_to_answer(tmp_path: Path, tiny_model: Path, validates: bool) -> None:
    (tmp_path / "tokens").mkdir()
    rows = {"input_ids": [[1, 2, 3]], "labels": [[1, 2, 3]]}
    for name in ("train", "validation") if validates else ("train",):
        write_arrow(tmp_path / "tokens" / f"{name}.arrow", rows)
    kind: type[UserError] = DataError if validates else ArgumentsError
    said = "trained from their first token on: give" if validates else "`--predict_with_generate` needs a validation"
    with pytest.raises(kind, match=said):
        Lab(tmp_path, tiny_model, tmp_path / "tokens").run(ANSWERS)


@pytest.mark.slow
def test_lines_are_json_of_one_kind(tmp_path: Path, model: Path, tokens: Path) -> None:
    lab = Lab(tmp_path, model, tokens)
    lab.attachments.mkdir(parents=True)
    earlier = [{"global_step": step, "query": "q", "response": "é", "label": "l"} for step in (0, 1)]
    text = "".join(json.dumps(line) + "\n" for line in earlier) + '{"global_step": 0, "query": "cut o'
    (lab.attachments / "predict.jsonl").write_text(text)
    lab.run(ANSWERS)
    lines = predictions(lab)
    assert [line["global_step"] for line in lines] == [0, 1, 1, 1, 1, 1]
    assert all(list(line) == ["global_step", "query", "response", "label"] for line in lines)
