"""NEFTune: noise on embeddings, as strong as the paper says, and only in training."""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from tests.stages.training.lab import Lab
from tests.stages.training.reference import ROW, STEADY, write_one_row

ALPHA = 5.0


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, Any]]:
    """What comes out of the embedding, with whether the model was being trained; nothing is changed."""
    from transformers.models.llama import modeling_llama

    seen: list[tuple[bool, Any]] = []
    plain = modeling_llama.LlamaDecoderLayer.forward

    def forward(self: Any, states: Any, *args: Any, **kwargs: Any) -> Any:
        if self.self_attn.layer_idx == 0:
            seen.append((self.training, states.detach().clone()))
        return plain(self, states, *args, **kwargs)

    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "forward", forward)
    return seen


@pytest.mark.parametrize("train_type", ["lora", "full"])
@pytest.mark.parametrize("alpha", [None, 0, ALPHA])
def test_noise_is_in_training_alone(
    tmp_path: Path, tiny_model: Path, watched: list[tuple[bool, Any]], train_type: str, alpha: float | None
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    lab = Lab(tmp_path, tiny_model, write_one_row(tmp_path / "tokens"))
    (lab.inputs["tokens"] / "validation.arrow").write_bytes((lab.inputs["tokens"] / "train.arrow").read_bytes())
    arguments = {"train_type": train_type, "neftune_noise_alpha": alpha, "learning_rate": 1e-9, "max_steps": 3}
    targets = {"target_modules": ["q_proj"]} if train_type == "lora" else {}
    lab.run(STEADY | arguments | targets | {"eval_strategy": "steps", "eval_steps": 1})

    table = AutoModelForCausalLM.from_pretrained(tiny_model).model.embed_tokens.weight.detach()
    trained = [states - table[torch.tensor(ROW)] for training, states in watched if training]
    measured = [states - table[torch.tensor(ROW)] for training, states in watched if not training]
    assert len(trained) == 3  # a batch of two equal rows in each of three steps
    assert len(measured) >= 3
    assert all(difference.abs().max() < 1e-6 for difference in measured)
    if not alpha:
        assert all(difference.abs().max() < 1e-6 for difference in trained)
        return
    bound = alpha / sqrt(len(ROW) * 64)
    noise = torch.stack(trained)
    assert noise.abs().max() <= bound * 1.0001
    assert noise.abs().max() > 0.99 * bound  # uniform up to the bound, on either side
    assert noise.std().item() == pytest.approx(bound / sqrt(3), rel=0.03)
    assert abs(noise.mean().item()) < 0.02 * bound
    assert not noise[0].equal(noise[1])


def test_the_noise_is_not_in_what_is_saved(tmp_path: Path, tiny_model: Path) -> None:
    """The embedding of the model that training leaves is not disturbed."""
    import torch
    from transformers import AutoModelForCausalLM

    lab = Lab(tmp_path, tiny_model, write_one_row(tmp_path / "tokens"))
    lab.run(STEADY | {"train_type": "full", "neftune_noise_alpha": ALPHA, "max_steps": 1, "learning_rate": 1e-9})
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tiny_model, lab.out))
    with torch.no_grad():
        ids = torch.tensor([ROW])
        torch.testing.assert_close(after.train()(ids).logits, before.eval()(ids).logits, atol=1e-4, rtol=0)
