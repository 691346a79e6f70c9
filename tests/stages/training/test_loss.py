"""The weighted loss against sums done one by one in float64, and what weights do to the gradient."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from stages.training.loss import predicting, shifted, token_loss
from stages.training.rows import IGNORED
from tests.stages.training.lab import SHORT, Lab
from tests.stages.training.tokens import write_arrow

X = IGNORED
LABELS = [[X, 3, X, 4, 1], [2, X, 0, 6, X]]
SCALE = [[1.0, 2.0, 9.0, 0.5, 3.0], [5.0, 7.0, 0.25, 1.0, 1.0]]


def make_logits() -> Any:
    import torch

    return torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)


def whole_loss(logits: Any, labels: Any, scale: Any, num_targets: Any = None, **kwargs: Any) -> Any:
    """The loss of whole rows, as the trainer computes it."""
    kept = predicting(labels)
    weights = None if scale is None else shifted(scale, 0)[kept]
    return token_loss(logits[kept], shifted(labels, X)[kept], weights, num_targets, **kwargs)


def by_hand(logits: Any, smoothing: float = 0.0) -> tuple[float, int]:
    total, count = 0.0, 0
    for row, labels in enumerate(LABELS):
        for position in range(1, 5):
            if (label := labels[position]) == X:
                continue
            values = logits[row, position - 1].double().tolist()
            norm = math.log(sum(map(math.exp, values)))
            loss = (1 - smoothing) * (norm - values[label]) + smoothing * (norm - sum(values) / 7)
            total += SCALE[row][position] * loss
            count += 1
    return total, count


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("num_labels", [None, 12])
def test_against_sums(num_labels: int | None, smoothing: float) -> None:
    import torch

    logits = make_logits()
    total, count = by_hand(logits.detach(), smoothing)
    loss = whole_loss(logits, torch.tensor(LABELS), torch.tensor(SCALE), num_labels, label_smoothing=smoothing)
    assert count == 5
    assert loss.item() == pytest.approx(total / (num_labels or count), rel=1e-6)
    if num_labels is not None:
        counted = whole_loss(
            logits, torch.tensor(LABELS), torch.tensor(SCALE), torch.tensor(12), label_smoothing=smoothing
        )
        assert counted.item() == loss.item()


def test_weights_of_one_are_plain_cross_entropy() -> None:
    import torch
    from torch.nn.functional import cross_entropy

    logits, labels = make_logits(), torch.tensor(LABELS)
    plain = cross_entropy(logits[:, :-1].reshape(-1, 7), labels[:, 1:].reshape(-1), ignore_index=X)
    for scale in (None, torch.ones(2, 5)):
        assert whole_loss(logits, labels, scale).item() == pytest.approx(plain.item(), rel=1e-6)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.0, 3.0])
def test_a_weight_multiplies_its_tokens_gradient_and_no_other(weight: float) -> None:
    import torch

    gradients = []
    for value in (1.0, weight):
        logits, scale = make_logits(), torch.ones(2, 5)
        scale[0, 3] = value
        whole_loss(logits, torch.tensor(LABELS), scale).backward()
        gradients.append(logits.grad)
    expected = gradients[0].clone()
    expected[0, 2] *= weight
    torch.testing.assert_close(gradients[1], expected, rtol=1e-6, atol=1e-8)


def test_nothing_to_train_is_no_loss() -> None:
    import torch

    logits = make_logits()
    loss = whole_loss(logits, torch.full((2, 5), X), torch.ones(2, 5))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_a_mixture_of_experts_keeps_its_balance(tmp_path: Path) -> None:
    """Weights of 1 change nothing, for a model that adds something to its own loss."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts = {"num_local_experts": 4, "num_key_value_heads": 2, "output_router_logits": True}
    torch.manual_seed(0)
    config = AutoConfig.for_model("mixtral", vocab_size=384, router_aux_loss_coef=0.5, **sizes, **experts)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    rows = {"input_ids": [[1, 2, 3, 4], [5, 6, 7]], "labels": [[X, 2, 3, 4], [X, X, 7]]}
    losses = []
    for name, more in (("plain", {}), ("weighted", {"loss_scale": [[0, 1, 1, 1], [0, 0, 1]]})):
        (tmp_path / name).mkdir()
        write_arrow(tmp_path / name / "train.arrow", rows | more)
        lab = Lab(tmp_path / f"{name}-run", tmp_path / "model", tmp_path / name)
        short = {"max_steps": 1, "gradient_accumulation_steps": 1, "target_modules": ["q_proj"]}
        losses.append(lab.run(SHORT | short)["train_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[0] > math.log(384) + 0.4
