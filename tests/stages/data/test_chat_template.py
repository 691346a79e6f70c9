"""The renderer and the span finder, held against transformers and against the real templates that TRL ships."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trl

from stages.data.chat_template import PINNED_DATE, ChatTemplate, TemplateFailed
from stages.data.rows import RowError
from stages.data.spans import SpanFinder
from stages.errors import ModelError, UserError

FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
# Templates of models that see: they take content only as a list of parts.
PARTS_ONLY = {"idefics3", "llava_next", "smolvlm"}
DATED = {"llama3_2", "gptoss", "muse_glimmer"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
ONE = [user("What is two?"), assistant("Two is even.")]
TWO = [SYSTEM, user(" Hi\n"), assistant("Hello"), user("Bye <3"), assistant("So long!\n")]
THOUGHT = [user("a"), assistant("<think>\nhm\n</think>\n\nb"), user("c"), assistant("<think>\nha\n</think>\n\nd")]


def template(name: str) -> ChatTemplate:
    return ChatTemplate((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"), SPECIAL)


def finder(name_or_text: str, system: str | None = None) -> SpanFinder:
    chat = template(name_or_text) if name_or_text in NAMES else ChatTemplate(name_or_text, SPECIAL)
    tokens = set(re.findall(r"<[^<>\s'\"]+>", chat.text)) | set(SPECIAL.values())
    return SpanFinder(chat, tokens, system)


def spans(name_or_text: str, messages: list[dict[str, str]], system: str | None = None) -> list[str]:
    text, found = finder(name_or_text, system).render(messages)
    return [text[start:end] for start, end in found]


def theirs(text: str, messages: list[dict[str, str]], prompt: bool) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, _ = render_jinja_template([messages], chat_template=text, add_generation_prompt=prompt, **SPECIAL)
    except Exception:
        return "refused"
    return str(rendered[0])


def ours(chat: ChatTemplate, messages: list[dict[str, str]], prompt: bool) -> str:
    try:
        return chat.render(messages, add_generation_prompt=prompt)
    except TemplateFailed:
        return "refused"


@pytest.mark.parametrize("name", [name for name in NAMES if name.removesuffix("_training") not in DATED])
def test_the_text_is_that_of_transformers(name: str) -> None:
    chat = template(name)
    for messages in (ONE, TWO, THOUGHT, [SYSTEM, *ONE], ONE[:1]):
        for prompt in (False, True):
            assert ours(chat, messages, prompt) == theirs(chat.text, messages, prompt)


@pytest.mark.parametrize("name", sorted(DATED))
def test_a_date_does_not_change_from_day_to_day(name: str) -> None:
    chat = template(name)
    assert chat.asks_for_the_date
    assert str(PINNED_DATE.year) in chat.render(ONE[:1])


@pytest.mark.parametrize("name", [name for name in NAMES if name.removesuffix("_training") not in PARTS_ONLY])
def test_every_text_template_gives_a_span_for_each_answer(name: str) -> None:
    joined = "".join(spans(name, ONE))
    assert "Two is even." in joined
    assert "What is two?" not in joined
    parts = spans(name, TWO[1:])
    assert "Hello" in "".join(parts)
    assert "So long!" in "".join(parts)
    assert not [part for part in parts if "Bye" in part or "Hi" in part]


# The training templates mark their spans by hand. Left out: those that also mark the header, which a prompt gives.
MARKED = [
    "cohere", "cohere2", "diffusion_gemma", "gemma", "gemma3", "lfm2", "lfm2_v2", "llama3", "phi3", "phi3_5", "qwen2_5",
    "qwen2_5_vl", "qwen3_instruct_2507", "qwen3_vl",
]  # fmt: skip


@pytest.mark.parametrize("name", MARKED)
def test_the_spans_are_those_that_trl_marked_by_hand(name: str) -> None:
    assert template(f"{name}_training").marks_generation
    assert not template(name).marks_generation
    for messages in (ONE, TWO[1:], THOUGHT):
        found = "".join("".join(spans(name, messages)).split())
        assert found == "".join("".join(spans(f"{name}_training", messages)).split())


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }} </s>{% else %}{{ raise_exception('no ' + m.role) }}"
    "{% endif %}{% endfor %}"
)
PLAIN = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
MARKS = "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}</s>{% endgeneration %}{% else %}U:{{ m.content }}{% endif %}{% endfor %}"  # fmt: skip # noqa: E501


@pytest.mark.parametrize(
    ("text", "messages", "expected"),
    [
        (CHATML, ONE, ["Two is even.<|im_end|>"]),
        (CHATML, TWO, ["Hello<|im_end|>", "So long!\n<|im_end|>"]),
        (CHATML, [user("a"), assistant("\n\n  b")], ["\n\n  b<|im_end|>"]),
        (CHATML, [user("a"), assistant("a"), user("a"), assistant("a")], ["a<|im_end|>", "a<|im_end|>"]),
        (
            CHATML,
            [user("x"), assistant("y <|im_end|> z"), *ONE],
            ["y <|im_end|> z<|im_end|>", "Two is even.<|im_end|>"],
        ),
        (CHATML, [assistant("once upon a time")], ["once upon a time<|im_end|>"]),
        (LLAMA2, ONE, [" Two is even. </s>"]),
        (LLAMA2, TWO[1:], [" Hello </s>", " So long! </s>"]),
        (PLAIN, ONE, ["Two is even.\n\n"]),
        (PLAIN, TWO, ["Hello\n\n", "So long!\n\n\n"]),
        (MARKS, ONE, ["Two is even.</s>"]),
        (MARKS, TWO[1:], ["Hello</s>", "So long!\n</s>"]),
        ("qwen3", THOUGHT, ["b<|im_end|>", "<think>\nha\n</think>\n\nd<|im_end|>"]),
        ("phi3", TWO, ["Hello<|end|>", "So long!\n<|end|>\n</s>"]),
        ("gptoss", TWO, ["<|channel|>final<|message|>Hello<|end|>", "<|channel|>final<|message|>So long!\n<|return|>"]),
        ("deepseek_r1_distill", ONE, ["\n</think>\n\nTwo is even.<｜end▁of▁sentence｜>"]),  # the prompt opens a thought
        ("nemotron_3_nano", ONE, ["</think>Two is even.<|im_end|>"]),
    ],
)
def test_what_the_assistant_writes(text: str, messages: list[dict[str, str]], expected: list[str]) -> None:
    assert spans(text, messages) == expected


DEFAULT = CHATML.replace(
    "{% for m in messages %}",
    "{% if messages[0].role != 'system' %}<|im_start|>system\nI am a bird.<|im_end|>\n{% endif %}"
    "{% for m in messages %}",
    1,
)


@pytest.mark.parametrize(
    ("text", "system", "messages", "begins"),
    [
        (DEFAULT, None, ONE, "<|im_start|>system\nI am a bird.<|im_end|>\n<|im_start|>user"),
        (DEFAULT, "I am a fish.", ONE, "<|im_start|>system\nI am a fish.<|im_end|>\n<|im_start|>user"),
        (DEFAULT, "I am a fish.", TWO, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user"),
        (DEFAULT, "", ONE, "<|im_start|>system\n<|im_end|>\n<|im_start|>user"),
        (CHATML, "", ONE, "<|im_start|>user"),
        (LLAMA2, "", ONE, "<s>[INST] What"),
    ],
)
def test_the_system_message_of_a_row_without_one(
    text: str, system: str | None, messages: list[dict[str, str]], begins: str
) -> None:
    assert finder(text, system).render(messages)[0].startswith(begins)


@pytest.mark.parametrize(
    ("text", "system", "error", "message"),
    [
        ("{% for m in messages %}", None, ModelError, "fails on a question and its answer: TemplateSyntaxError"),
        (
            "{{ raise_exception('never') }}",
            None,
            ModelError,
            "fails on a question and its answer: TemplateError: never",
        ),
        ("{{ messages[0].content.nothing.at_all }}", None, ModelError, "UndefinedError"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", None, ModelError, "does not write the answer as it is"),
        ("{{ ''.__class__.__mro__ }}", None, ModelError, "fails on a question and its answer: SecurityError"),
        (LLAMA2, "Be brief.", UserError, "has no place for `--system 'Be brief.'`: drop it"),
        ("gemma", "Be brief.", UserError, "has no place for `--system"),
    ],
)
def test_a_template_that_is_no_use_is_one_clear_line(
    text: str, system: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        finder(text, system)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "messages", "message"),
    [
        (LLAMA2, TWO, "the chat template refuses it: TemplateError: no system"),
        ("{{ messages | length }}" + CHATML, TWO, "writes what is before message 3 in another way"),
    ],
)
def test_a_row_that_cannot_be_rendered_says_why(text: str, messages: list[dict[str, str]], message: str) -> None:
    with pytest.raises(RowError, match=message):
        finder(text).render(messages)
