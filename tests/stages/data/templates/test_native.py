"""What each registered template writes and what of it is learnt, written out."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest

from stages.data.rows import RowError
from stages.data.templates.detect import CALLS, PROBES
from stages.data.templates.meta import TemplateMeta, find_template, register_template, templates
from stages.data.templates.native import NativeTemplate
from stages.data.templates.rendered import TemplateSettings
from stages.errors import ArgumentsError

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

Row = dict[str, Any]


def talk(*turns: str, system: str | None = None) -> Row:
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return {"messages": [*messages, *({"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns))]}


def open_native(name: str, **settings: Any) -> NativeTemplate:
    return NativeTemplate(find_template(name), TOKENS, TemplateSettings(**settings))


def marked(name: str, row: Row, answer: str | None = None, **settings: Any) -> str:
    """The text, with what is learnt in brackets, and its weight where it is not 1."""
    text, spans = open_native(name, **settings).render(row, answer=answer)
    shown, position = "", 0
    for start, end, weight in spans:
        assert position <= start < end <= len(text)
        shown += f"{text[position:start]}[{text[start:end]}]{'' if weight == 1 else f'×{weight:g}'}"
        position = end
    return shown + text[position:]


TWO = talk(" q1", "a1\n", "q2", "a2")
SPOKEN = talk("q", "a", system="S")
LLAMA3_HEAD = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


@pytest.mark.parametrize(
    ("name", "two", "spoken"),
    [
        (
            "chatml",
            "<|im_start|>user\n q1<|im_end|>\n<|im_start|>assistant\n[a1\n<|im_end|>]\n"
            "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n[a2<|im_end|>]\n",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[a<|im_end|>]\n",
        ),
        (
            "qwen2_5",
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n q1<|im_end|>\n<|im_start|>assistant\n[a1\n<|im_end|>]\n"
            "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n[a2<|im_end|>]\n",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[a<|im_end|>]\n",
        ),
        (
            "qwen3",
            "<|im_start|>user\n q1<|im_end|>\n<|im_start|>assistant\n[a1\n<|im_end|>]\n"
            "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n[<think>\n\n</think>\n\na2<|im_end|>]\n",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
            "[<think>\n\n</think>\n\na<|im_end|>]\n",
        ),
        (
            "internlm2",
            "<s><|im_start|>user\n q1<|im_end|>\n<|im_start|>assistant\n[a1\n<|im_end|>]\n"
            "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n[a2<|im_end|>]\n",
            "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[a<|im_end|>]\n",
        ),
        (
            "yi_1_5",
            "<|im_start|>user\n q1<|im_end|>\n<|im_start|>assistant\n[a1\n<|im_end|>]\n"
            "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n[a2<|im_end|>]\n",
            "S<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[a<|im_end|>]\n",
        ),
        (
            "llama2",
            "<s>[INST] q1 [/INST][ a1 </s>]<s>[INST] q2 [/INST][ a2 </s>]",
            "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nq [/INST][ a </s>]",
        ),
        (
            "llama3",
            "<s><|start_header_id|>user<|end_header_id|>\n\nq1<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n[a1<|eot_id|>]"
            "<|start_header_id|>user<|end_header_id|>\n\nq2<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n[a2<|eot_id|>]",
            "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n[a<|eot_id|>]",
        ),
        (
            "llama3_2",
            f"<s><|start_header_id|>system<|end_header_id|>\n\n{LLAMA3_HEAD}<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nq1<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n[a1<|eot_id|>]"
            "<|start_header_id|>user<|end_header_id|>\n\nq2<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n[a2<|eot_id|>]",
            f"<s><|start_header_id|>system<|end_header_id|>\n\n{LLAMA3_HEAD}S<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n[a<|eot_id|>]",
        ),
        (
            "gemma3",
            "<s><start_of_turn>user\nq1<end_of_turn>\n<start_of_turn>model\n[a1<end_of_turn>]\n"
            "<start_of_turn>user\nq2<end_of_turn>\n<start_of_turn>model\n[a2<end_of_turn>]\n",
            "<s><start_of_turn>user\nS\n\nq<end_of_turn>\n<start_of_turn>model\n[a<end_of_turn>]\n",
        ),
        (
            "mistral",
            "<s>[INST]  q1[/INST][ a1\n</s>][INST] q2[/INST][ a2</s>]",
            "<s>[INST] S\n\nq[/INST][ a</s>]",
        ),
        ("mistral_nemo", "<s>[INST] q1[/INST][a1\n</s>][INST]q2[/INST][a2</s>]", "<s>[INST]S\n\nq[/INST][a</s>]"),
        (
            "mistral_2501",
            "<s>[INST] q1[/INST][a1\n</s>][INST]q2[/INST][a2</s>]",
            "<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]q[/INST][a</s>]",
        ),
        (
            "phi3",
            "<|user|>\n q1<|end|>\n<|assistant|>\n[a1\n<|end|>]\n<|user|>\nq2<|end|>\n<|assistant|>\n[a2<|end|>\n</s>]",
            "<|system|>\nS<|end|>\n<|user|>\nq<|end|>\n<|assistant|>\n[a<|end|>\n</s>]",
        ),
        (
            "phi4",
            "<|im_start|>user<|im_sep|> q1<|im_end|><|im_start|>assistant<|im_sep|>[a1\n<|im_end|>]"
            "<|im_start|>user<|im_sep|>q2<|im_end|><|im_start|>assistant<|im_sep|>[a2<|im_end|>]",
            "<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>q<|im_end|>"
            "<|im_start|>assistant<|im_sep|>[a<|im_end|>]",
        ),
        (
            "deepseek",
            "<s>User:  q1\n\nAssistant:[ a1\n</s>]User: q2\n\nAssistant:[ a2</s>]",
            "<s>S\n\nUser: q\n\nAssistant:[ a</s>]",
        ),
        (
            "deepseek_v3",
            "<s><｜User｜> q1<｜Assistant｜>[a1\n</s>]<｜User｜>q2<｜Assistant｜>[a2</s>]",
            "<s>S<｜User｜>q<｜Assistant｜>[a</s>]",
        ),
        (
            "deepseek_r1",
            "<s><｜User｜> q1<｜Assistant｜>[a1\n</s>]<｜User｜>q2<｜Assistant｜><think>\n[\n</think>\n\na2</s>]",
            "<s>S<｜User｜>q<｜Assistant｜><think>\n[\n</think>\n\na</s>]",
        ),
        (
            "glm4",
            "[gMASK]<sop><|user|>\n q1<|assistant|>\n[a1\n<|user|>]\nq2<|assistant|>\n[a2<|user|>]",
            "[gMASK]<sop><|system|>\nS<|user|>\nq<|assistant|>\n[a<|user|>]",
        ),
        (
            "baichuan",
            "<reserved_106> q1<reserved_107>[a1\n]<reserved_106>q2<reserved_107>[a2</s>]",
            "S<reserved_106>q<reserved_107>[a</s>]",
        ),
    ],
)
def test_what_a_template_writes(name: str, two: str, spoken: str) -> None:
    assert marked(name, TWO) == two
    assert marked(name, SPOKEN) == spoken


@pytest.mark.parametrize("name", ["gemma", "gemma2"])
def test_a_template_without_a_place_for_a_system_message_says_so(name: str) -> None:
    assert marked(name, TWO) == (
        "<s><start_of_turn>user\nq1<end_of_turn>\n<start_of_turn>model\n[a1<end_of_turn>]\n"
        "<start_of_turn>user\nq2<end_of_turn>\n<start_of_turn>model\n[a2<end_of_turn>]\n"
    )
    with pytest.raises(RowError, match=f"template {name} has no place for a system message"):
        marked(name, SPOKEN)
    with pytest.raises(RowError, match="has no place for tools, which are written as a system message"):
        marked(name, dict(CALLS[0]))
    with pytest.raises(ArgumentsError, match=f"template {name} has no place for a system message: drop `--system 'S'`"):
        open_native(name, system="S")
    assert open_native(name, system="").system is None


Q, A = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "[a<|im_end|>]\n"
SMOLLM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@pytest.mark.parametrize(
    ("name", "system", "row", "expected"),
    [
        ("smollm", None, talk("q", "a"), f"<|im_start|>system\n{SMOLLM}<|im_end|>\n{Q}{A}"),
        ("smollm", "Be.", talk("q", "a"), f"<|im_start|>system\nBe.<|im_end|>\n{Q}{A}"),
        ("smollm", "Be.", SPOKEN, f"<|im_start|>system\nS<|im_end|>\n{Q}{A}"),
        ("smollm", "", talk("q", "a"), f"{Q}{A}"),
        ("smollm", None, talk("q", "a", system=""), f"<|im_start|>system\n<|im_end|>\n{Q}{A}"),
        ("chatml", "Be.", talk("q", "a"), f"<|im_start|>system\nBe.<|im_end|>\n{Q}{A}"),
        (
            "gemma3",
            "Be.",
            talk("q", "a"),
            "<s><start_of_turn>user\nBe.\n\nq<end_of_turn>\n<start_of_turn>model\n[a<end_of_turn>]\n",
        ),
        ("phi3_5", None, talk("q", "a", system=""), "<|user|>\nq<|end|>\n<|assistant|>\n[a<|end|>\n</s>]"),
        (
            "mistral_nemo",
            "Be.",
            talk("q1", "a1", "q2", "a2"),
            "<s>[INST]q1[/INST][a1</s>][INST]Be.\n\nq2[/INST][a2</s>]",
        ),
    ],
)
def test_the_system_message(name: str, system: str | None, row: Row, expected: str) -> None:
    assert marked(name, row, system=system) == expected


THOUGHTS = talk("q", "<think>\nhm\n</think>\n\nb", "c", "<think>\nha\n</think>\n\nd")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chatml", ["<think>\nhm\n</think>\n\nb<|im_end|>", "<think>\nha\n</think>\n\nd<|im_end|>"]),
        ("qwen3", ["b<|im_end|>", "<think>\nha\n</think>\n\nd<|im_end|>"]),
        ("deepseek_r1", ["\n\nb</s>", "ha\n</think>\n\nd</s>"]),
    ],
)
def test_thoughts(name: str, expected: list[str]) -> None:
    text, spans = open_native(name).render(THOUGHTS)
    assert [text[start:end] for start, end, _ in spans] == expected


def muted(row: Row, *loss: bool | None) -> Row:
    """With `loss` for each answer."""
    told = iter(loss)
    messages = [{**m, "loss": next(told)} if m["role"] == "assistant" else m for m in row["messages"]]
    return {"messages": messages}


PLAIN = talk("q1", "a1", "q2", "a2")
ACT = talk("q", "Thought: t\nAction: f\nAction Input: 1")
VALUE = talk("What is the value of x?", "4")


@pytest.mark.parametrize(
    ("loss_scale", "row", "expected"),
    [
        ("default", PLAIN, "Uq1ZA[a1E]\nUq2ZA[a2E]\n"),
        ("last_round", PLAIN, "Uq1ZAa1E\nUq2ZA[a2E]\n"),
        ("all", PLAIN, "[Uq1ZAa1E\nUq2ZAa2E\n]"),
        ("default", muted(PLAIN, False, None), "Uq1ZAa1E\nUq2ZA[a2E]\n"),
        ("default", muted(PLAIN, None, False), "Uq1ZA[a1E]\nUq2ZAa2E\n"),
        ("last_round", muted(PLAIN, True, None), "Uq1ZA[a1E]\nUq2ZA[a2E]\n"),
        ("all", muted(PLAIN, False, None), "[Uq1ZA]a1E[\nUq2ZAa2E\n]"),
        ("react", ACT, "UqZA[Thought: t\n][Action: f\nAction Input: 1]×2[E]\n"),
        ("all+react", ACT, "[UqZAThought: t\n][Action: f\nAction Input: 1]×2[E\n]"),
        ("agentflan", VALUE, "UWhat is the value of x?ZA[4]×3[E]\n"),
    ],
)
def test_what_is_learnt(loss_scale: str, row: Row, expected: str) -> None:
    shown = marked("chatml", row, loss_scale=loss_scale)
    for token, letter in (("user\n", "U"), ("assistant\n", "A")):
        shown = shown.replace(f"<|im_start|>{token}", letter)
    assert shown.replace("<|im_end|>\nA", "ZA").replace("<|im_end|>", "E") == expected


def test_a_thought_that_is_empty_is_not_learnt_if_told_so() -> None:
    shown = marked("qwen3", talk("q", "a"), loss_scale="ignore_empty_think")
    assert shown == f"{Q}<think>\n\n</think>\n\n{A}"


def test_another_answer_takes_the_place_of_the_last() -> None:
    row = {"messages": [*PLAIN["messages"][:-1], {"role": "assistant", "content": "a2", "loss": False}]}
    assert marked("llama2", row, answer="no") == "<s>[INST] q1 [/INST][ a1 </s>]<s>[INST] q2 [/INST][ no </s>]"


def test_text_alone_follows_an_empty_question() -> None:
    row = {"messages": [{"role": "assistant", "content": "Once"}]}
    assert marked("chatml", row) == "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n[Once<|im_end|>]\n"


@pytest.mark.parametrize("meta", templates(), ids=lambda meta: meta.name)
@pytest.mark.parametrize("loss_scale", ["default", "last_round", "all", "react"])
def test_every_text_begins_with_its_prompt_and_is_the_same_under_every_scale(
    meta: TemplateMeta, loss_scale: str
) -> None:
    template = NativeTemplate(meta, TOKENS, TemplateSettings(loss_scale=loss_scale))
    plain = NativeTemplate(meta, TOKENS, TemplateSettings())
    for row in (*PROBES, *CALLS):
        try:
            text, spans = template.render(row)
        except RowError:
            continue
        assert text.startswith(template.prompt(row))
        assert text == plain.render(row).text
        assert [(s.start, s.end) for s in spans] == sorted((s.start, s.end) for s in spans)
        assert all(a.end <= b.start for a, b in pairwise(spans))
        if loss_scale == "last_round":
            assert spans[0].start == len(template.prompt(row))


def test_a_hundred_thousand_rows_a_second() -> None:
    """The target is 100,000 on an idle core; a busy one is given ten times as long."""
    template = open_native("chatml")
    rows = [talk(f"What is the sum of {n} and {n + 1}?" * 3, f"It is {2 * n + 1}. " * 20) for n in range(5000)]
    started = time.perf_counter()
    for row in rows:
        template.render(row)
    assert len(rows) / (time.perf_counter() - started) > 10_000


def test_parts_as_swift_writes_them() -> None:
    meta = register_template(
        TemplateMeta(
            "test_swift",
            [["bos_token_id"], "{{SYSTEM}}"],
            ["Q: {{QUERY}}\n", "A:"],
            [["eos_token_id"], "\n"],
            [["eos_token_id"]],
            default_system="S\n",
        )
    )
    assert find_template("test_swift") is meta
    assert marked("test_swift", PLAIN) == "<s>S\nQ: q1\nA:[a1</s>]\nQ: q2\nA:[a2</s>]"
    with pytest.raises(ArgumentsError, match="there is a template 'test_swift' already"):
        register_template(meta)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"prompt": "Q"}, "prompt has to hold {{QUERY}} once: 'Q'"),
        ({"prompt": "{{QUERY}}{{QUERY}}"}, "prompt has to hold {{QUERY}} once"),
        ({"prompt": "{{QUERY}}", "tool_prompt": "T"}, "tool_prompt has to hold {{QUERY}} once"),
        ({"prompt": "{{QUERY}}", "default_system": "S"}, "has a default_system and no place for it"),
    ],
)
def test_parts_that_cannot_be(parts: dict[str, str], message: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        TemplateMeta("broken", prefix="", chat_sep="", **parts)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_a_template_for_one_question() -> None:
    template = NativeTemplate(TemplateMeta("one", "", "{{QUERY}}\n", None), TOKENS, TemplateSettings())
    assert template.render(talk("q", "a")).text == "q\na</s>"
    with pytest.raises(RowError, match="template one writes one question and one answer, not 4 messages"):
        template.render(PLAIN)


def test_a_token_that_the_tokenizer_lacks() -> None:
    with pytest.raises(ArgumentsError, match="template llama2 needs a bos_token, which the tokenizer does not have"):
        NativeTemplate(find_template("llama2"), {"eos_token": "</s>"}, TemplateSettings())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chatlm", "there is no template 'chatlm'. Did you mean chatml?"),
        ("Llama3", "there is no template 'Llama3'. Did you mean llama3 or llama3_2 or llama3_1?"),
        ("nothing_like_it", "there is no template 'nothing_like_it'. Choose from: baichuan, chatml, deepseek,"),
    ],
)
def test_a_name_that_is_none(name: str, message: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        find_template(name)
    assert message in str(caught.value)
