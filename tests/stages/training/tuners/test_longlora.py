"""LongLoRA: attention in training against formulas written out, and everything else as LoRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stages.errors import ArgumentsError, ModelError
from stages.training.shifted_attention import Segment, segments, shifted_attention
from tests.stages.training.lab import Lab
from tests.stages.training.tokens import write_arrow
from tests.stages.training.tuners.methods import (
    PLAIN,
    base_model,
    batch_losses,
    check_resume,
    logged_losses,
    logits_of,
    merged,
    prepared,
    trained_names,
    write_tokens,
)

GIVEN: dict[str, Any] = {"train_type": "longlora", "max_length": 16, "weight_decay": 0.0}
SAVED = ["embed_tokens", "input_layernorm", "norm", "post_attention_layernorm"]

CUTS = [
    ((32, 8, 32, 0), [(0, 8, 0), (8, 16, 0), (16, 24, 0), (24, 32, 0)]),
    ((32, 8, 32, 4), [(0, 4, 0), (4, 12, 0), (12, 20, 0), (20, 28, 0), (28, 32, 4)]),
    ((30, 8, 32, 4), [(0, 4, 0), (4, 12, 0), (12, 20, 0), (20, 28, 0), (28, 30, 4)]),
    ((13, 8, 32, 4), [(0, 4, 0), (4, 12, 0), (12, 13, 0)]),
    ((3, 8, 32, 4), [(0, 3, 0)]),
    ((8, 8, 8, 4), [(0, 4, 0), (4, 8, 4)]),
    ((8, 8, 8, 0), [(0, 8, 0)]),
]


@pytest.mark.parametrize(("numbers", "expected"), CUTS)
def test_a_row_is_cut_into_groups(numbers: tuple[int, int, int, int], expected: list[tuple[int, int, int]]) -> None:
    assert segments(*numbers) == [Segment(*one) for one in expected]


def allowed(length: int, group: int, context: int, shift: int) -> Any:
    """Whether a token sees another one: of its own group, in a circle of `context` tokens, and not a later one."""
    import torch

    places = torch.arange(length)
    groups = (places - shift) % context // group
    return (groups[:, None] == groups[None]) & (places[:, None] >= places[None])


def by_formula(query: Any, key: Any, value: Any, group: int, context: int) -> Any:
    import torch

    heads, length = query.shape[1], query.shape[2]
    made = []
    for head in range(heads):
        of = head * key.shape[1] // heads
        mask = allowed(length, group, context, 0 if head < heads // 2 else group // 2)
        scores = query[:, head] @ key[:, of].transpose(1, 2) / query.shape[-1] ** 0.5
        made.append(torch.softmax(scores.masked_fill(~mask, float("-inf")), -1) @ value[:, of])
    return torch.stack(made, 2)


def drawn(length: int) -> tuple[Any, Any, Any]:
    import torch

    generator = torch.Generator().manual_seed(length)
    shapes = ((2, 4, length, 8), (2, 2, length, 8), (2, 2, length, 8))
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key, value


TRAINING: Any = SimpleNamespace(training=True)


@pytest.mark.parametrize("length", [1, 3, 13, 19, 30, 32])
def test_attention_is_that_of_the_formula(length: int) -> None:
    import torch

    query, key, value = drawn(length)
    found, _ = shifted_attention(TRAINING, query, key, value, None, group=8, context=32)
    torch.testing.assert_close(found, by_formula(query, key, value, 8, 32), atol=1e-5, rtol=1e-5)


def test_it_is_the_paper_s_where_that_does_not_look_ahead() -> None:
    """Algorithm 1: the second half of the heads is rolled by half a group, and each group attends to itself."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    query, key, value = drawn(32)
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)

    def rolled(states: Any, by: int) -> Any:
        first, second = states.chunk(2, 1)
        return torch.cat([first, second.roll(by, 2)], 1)

    def grouped(states: Any) -> Any:
        return rolled(states, -4).transpose(1, 2).reshape(8, 8, 4, 8).transpose(1, 2)

    attended = scaled_dot_product_attention(grouped(query), grouped(key), grouped(value), is_causal=True)
    paper = rolled(attended.transpose(1, 2).reshape(2, 32, 4, 8).transpose(1, 2), 4).transpose(1, 2)
    found, _ = shifted_attention(TRAINING, query, key, value, None, group=8, context=32)
    torch.testing.assert_close(found[:, :, :2], paper[:, :, :2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:, 4:28], paper[:, 4:28], atol=1e-5, rtol=1e-5)
    assert (found[:, :4, 2:] - paper[:, :4, 2:]).abs().max() > 1e-2  # which sees the last four tokens there


def test_one_group_is_plain_attention_and_no_token_sees_a_later_one() -> None:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    query, key, value = drawn(16)
    plain = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2)
    found, _ = shifted_attention(TRAINING, query, key, value, None, group=16, context=16)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    before, _ = shifted_attention(TRAINING, query, key, value, None, group=4, context=16)
    key[:, :, 9:], value[:, :, 9:] = 5.0, 7.0
    after, _ = shifted_attention(TRAINING, query, key, value, None, group=4, context=16)
    torch.testing.assert_close(after[:, :9], before[:, :9])
    assert (after[:, 9:] - before[:, 9:]).abs().max() > 1


class WithMask:
    """A model whose heads attend as the formula says, by a mask that eager attention adds."""

    def __init__(self, model: Any, group: int, context: int) -> None:
        self.model, self.group, self.context = model, group, context

    def __call__(self, ids: Any) -> Any:
        import torch

        halves = [allowed(ids.shape[1], self.group, self.context, shift) for shift in (0, 0, *[self.group // 2] * 2)]
        mask = torch.zeros(1, 4, ids.shape[1], ids.shape[1]).masked_fill(~torch.stack(halves)[None], -1e9)
        return self.model(ids, attention_mask=mask)

    def parameters(self) -> Any:
        return self.model.parameters()

    def train(self) -> None:
        self.model.train()


def test_it_trains_as_written_out_and_attends_to_everything_later(lab: Lab, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import set_seed

    tokens = write_tokens(tmp_path / "tokens")
    held_out = [[3, 14, 15, 92, 65, 35, 89, 79, 32, 38]]
    write_arrow(tokens / "validation.arrow", {"input_ids": held_out, "labels": held_out})
    lab.inputs["tokens"] = tokens
    metrics = lab.run(PLAIN | GIVEN)

    set_seed(42)
    targets = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=32, target_modules=targets, modules_to_save=SAVED)
    base = base_model(lab.inputs["model"])
    base.set_attn_implementation("eager")
    model = get_peft_model(base, config)
    expected = batch_losses(WithMask(model, 4, 16), lab, PLAIN)
    assert logged_losses(lab) == pytest.approx(expected, abs=1e-5)

    described = json.loads((lab.out / "adapter_config.json").read_text())
    assert (described["peft_type"], described["modules_to_save"]) == ("LORA", SAVED)
    tuned = PeftModel.from_pretrained(base_model(lab.inputs["model"]), lab.out)
    torch.testing.assert_close(logits_of(merged(lab, lab.out)), logits_of(tuned), atol=1e-4, rtol=1e-4)
    ids = torch.tensor(held_out)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(tuned(ids).logits[0, :-1], ids[0, 1:])
    assert metrics["eval_loss"] == pytest.approx(float(loss), abs=1e-5)


def test_matrices_embeddings_and_norms_are_trained(lab: Lab) -> None:
    names = trained_names(prepared(lab, GIVEN))
    saved = {name.partition(".modules_to_save.")[0].rpartition(".")[2] for name in names if ".lora_" not in name}
    assert saved == set(SAVED)
    assert {name.rpartition(".lora_")[2] for name in names if ".lora_" in name} == {
        "A.default.weight",
        "B.default.weight",
    }


def test_a_run_that_is_cut_off_ends_in_the_same_bytes(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    check_resume(tmp_path, tiny_model, tokens, GIVEN | {"lora_dropout": 0.2})


def changed(folder: Path, out: Path, **values: Any) -> Path:
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | values))
    return out


MODELS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"model_type": "gemma", "head_dim": 16}, {}, "`--train_type longlora` is for models like Llama"),
    (
        {"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8},
        {},
        "`--train_type longlora` is for models like Llama",
    ),
    ({"model_type": "mistral", "sliding_window": 8}, {}, "`--train_type longlora` is for models like Llama"),
    ({}, {"max_length": 20}, "`--max_length 20` cannot be cut into 4 groups that LongLoRA shifts by half"),
    ({"max_position_embeddings": 250}, {"max_length": None}, "the model's context of 250 tokens cannot be cut"),
]


@pytest.mark.parametrize(("config", "arguments", "message"), MODELS)
def test_what_it_cannot_train(
    lab: Lab, tmp_path: Path, config: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    lab.inputs["model"] = changed(lab.inputs["model"], tmp_path / "changed", **config)
    with pytest.raises((ModelError, ArgumentsError)) as caught:
        lab.run(PLAIN | GIVEN | arguments)
    assert str(caught.value).startswith(message)


def test_packs_are_refused(lab: Lab, tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens", count=2)
    write_arrow(tokens / "train_packs.arrow", {"rows": [[0, 1]]})
    lab.inputs["tokens"] = tokens
    with pytest.raises(ArgumentsError, match="`--packing` puts rows together, and `--train_type longlora` cuts them"):
        lab.run(PLAIN | GIVEN)
