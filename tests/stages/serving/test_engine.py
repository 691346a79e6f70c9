"""What the engine generates is what transformers generates by itself, cut where it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.errors import ArgumentsError, Interrupted, ModelError
from stages.serving.engine import Engine, Sampling

GREEDY = Sampling(temperature=0.0, max_new_tokens=12)
QUESTION = [{"role": "user", "content": "what is the sum of one and two?"}]


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine.open(tiny_model)


def reference(engine: Engine, prompt: str, count: int) -> list[int]:
    """Greedy decoding without any cache or generate()."""
    import torch

    ids = engine.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    made: list[int] = []
    with torch.inference_mode():
        while len(made) < count and (not made or made[-1] != engine.tokenizer.eos_token_id):
            made.append(int(engine.model(ids, use_cache=False).logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([[made[-1]]])], dim=1)
    return made


def test_greedy_is_the_likeliest_token_each_time(engine: Engine) -> None:
    prompt = engine.tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    expected = reference(engine, prompt, 12)
    made = engine.chat(QUESTION, GREEDY)
    assert made.text == engine.tokenizer.decode(expected, skip_special_tokens=True)
    assert made.num_tokens == len(expected)
    assert made.num_prompt_tokens == len(engine.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    assert made.finish_reason == "length"


def test_a_stop_text_ends_it_and_is_not_part_of_it(engine: Engine) -> None:
    whole = engine.chat(QUESTION, GREEDY).text
    stop = whole[len(whole) // 2 :][:2]
    made = engine.chat(QUESTION, GREEDY.updated(stop=(stop,)))
    assert made.text == whole[: whole.index(stop)]
    assert made.finish_reason == "stop"
    assert made.num_tokens < 12


def test_sampling_is_repeated_by_its_seed_and_leaves_torchs_own_alone(engine: Engine) -> None:
    import torch

    hot = Sampling(temperature=5.0, max_new_tokens=12)
    first = engine.chat(QUESTION, hot).text
    assert engine.chat(QUESTION, hot).text == first
    assert {engine.chat(QUESTION, hot.updated(seed=seed)).text for seed in range(3)} != {first}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    engine.chat(QUESTION, hot)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_p": 1e-6},
        {"temperature": 0.0, "top_k": 50, "top_p": 0.5},
        {"temperature": None},
        {"temperature": 1e-4, "top_k": -1},
    ],
)
def test_settings_that_leave_one_choice_are_greedy(settings: dict[str, Any], engine: Engine) -> None:
    assert engine.chat(QUESTION, Sampling(max_new_tokens=12, **settings)).text == engine.chat(QUESTION, GREEDY).text


def test_repetition_is_discouraged(engine: Engine) -> None:
    made = engine.chat(QUESTION, GREEDY.updated(max_new_tokens=40, repetition_penalty=1000.0))
    plain = engine.chat(QUESTION, GREEDY.updated(max_new_tokens=40))
    assert len(set(made.text.split())) > len(set(plain.text.split()))


def test_a_system_message_is_added_where_there_is_none(tiny_model: Path, engine: Engine) -> None:
    with_system = Engine(engine.model, engine.tokenizer, system="hello world")
    asked = [{"role": "system", "content": "hello world"}, *QUESTION]
    assert with_system.chat(QUESTION, GREEDY) == engine.chat(asked, GREEDY)
    assert with_system.chat(asked, GREEDY) == engine.chat(asked, GREEDY)
    assert with_system.chat(QUESTION, GREEDY).num_prompt_tokens > engine.chat(QUESTION, GREEDY).num_prompt_tokens


def test_without_a_limit_it_fills_the_models_room(engine: Engine) -> None:
    made = engine.complete("hello world", Sampling(temperature=0.0))
    assert made.num_prompt_tokens + made.num_tokens == engine.max_length == 256


@pytest.mark.parametrize(("prompt", "message"), [("", "empty"), ("sky sea " * 200, "the model takes 256")])
def test_a_prompt_that_cannot_be_answered_is_refused(prompt: str, message: str, engine: Engine) -> None:
    with pytest.raises(ArgumentsError, match=message):
        engine.complete(prompt, GREEDY)


def test_a_model_without_a_template_cannot_chat(engine: Engine, tiny_model: Path) -> None:
    from stages.serving.loading import load_tokenizer

    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        Engine(engine.model, tokenizer).check_chat_template()


def test_closing_ends_what_is_under_way(engine: Engine) -> None:
    closing = Engine(engine.model, engine.tokenizer)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            closing.close()

    hook = engine.model.register_forward_hook(count)
    try:
        with pytest.raises(Interrupted):
            closing.complete("hello world", Sampling(temperature=0.0))
    finally:
        hook.remove()
    assert calls <= 6
