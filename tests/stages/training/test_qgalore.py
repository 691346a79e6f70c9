"""Q-GaLore: bitsandbytes' 8-bit AdamW in low rank; projections in few bits, renewed as seldom as they may be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import TrainArguments
from stages.errors import ArgumentsError
from stages.training.optimizers.qgalore import dequantize, quantize
from tests.stages.test_train import tokens as tokens
from tests.stages.training.lab import SHORT, Lab, cut_off_and_whole
from tests.stages.training.reference import STEADY, losses, losses_by_hand, write_one_row
from tests.stages.training.test_galore import MATRICES, optimizer_state

QGALORE = {
    "train_type": "full",
    "use_galore": True,
    "galore_quantization": True,
    "galore_rank": 8,
    "galore_cos_threshold": 1.0,
    "learning_rate": 1e-3,
}
QUANT = {"galore_proj_quant": True, "galore_proj_bits": 4, "galore_proj_group_size": 100}


@pytest.mark.parametrize(
    ("values", "bits", "size", "codes", "back"),
    [
        ([0.0, 1.0, 2.0, 3.0], 2, 4, [[0, 1, 2, 3]], [0.0, 1.0, 2.0, 3.0]),
        ([-3.0, 0.0, 3.0, 6.0], 2, 4, [[0, 1, 2, 3]], [-3.0, 0.0, 3.0, 6.0]),
        ([0.0, 1.2, 1.9, 3.0], 2, 4, [[0, 1, 2, 3]], [0.0, 1.0, 2.0, 3.0]),  # rounded
        ([0.0, 15.0, 0.0, 30.0], 4, 2, [[0, 15], [0, 15]], [0.0, 15.0, 0.0, 30.0]),  # each group has a scale
        ([0.0, 3.0, -3.0, 6.0, 0.0], 2, 2, None, [0.0, 3.0, -3.0, 6.0, 0.0]),  # the last group is filled up
        ([0.0, 1.0], 8, 256, [[0, 255]], [0.0, 1.0]),  # smaller than a group
    ],
)
def test_codes(values: list[float], bits: int, size: int, codes: list[list[int]] | None, back: list[float]) -> None:
    import torch

    found = quantize(torch.tensor(values), bits, size)
    assert found[0].dtype == torch.uint8
    assert found[0].shape[1] == min(size, len(values))
    if codes is not None:
        assert found[0].tolist() == codes
    torch.testing.assert_close(dequantize(*found).flatten()[: len(values)], torch.tensor(back))


class ByHand:
    """A bitsandbytes optimizer of its own for each matrix, which sees nothing but low rank."""

    def __init__(self, model: Any, gap: int, *, quant: bool) -> None:
        from bitsandbytes.optim import AdamW8bit

        self.model, self.gap, self.quant, self.kept = model, gap, quant, {}
        others = [one for name, one in model.named_parameters() if not any(part in name for part in MATRICES)]
        matrices = [{"params": [one for one in others if one.ndim == 2], "weight_decay": 0.1}]
        vectors = [{"params": [one for one in others if one.ndim == 1], "weight_decay": 0.0}]
        self.rest = AdamW8bit(matrices + vectors, lr=1e-3)

    def step(self, number: int) -> None:
        import torch
        from bitsandbytes.optim import AdamW8bit

        for name, weight in self.model.named_parameters():
            if not any(part in name for part in MATRICES):
                continue
            tall = weight.shape[0] >= weight.shape[1]
            if number % self.gap == 0:
                u, _, v = torch.linalg.svd(weight.grad, full_matrices=False)
                side = v[:8].contiguous() if tall else u[:, :8].contiguous()
                self.kept[name, "side"] = self.rounded(side) if self.quant else side
            side = self.kept[name, "side"]
            low = weight.grad @ side.T if tall else side.T @ weight.grad
            if name not in self.kept:
                dummy = torch.nn.Parameter(torch.zeros_like(low))
                self.kept[name] = dummy, AdamW8bit([dummy], lr=1e-3, weight_decay=0.0)
            dummy, optimizer = self.kept[name]
            with torch.no_grad():
                dummy.zero_()
                dummy.grad = low.contiguous()
                optimizer.step()
                weight += 0.5 * (dummy @ side if tall else side @ dummy)
                weight *= 1 - 1e-3 * 0.1
        self.rest.step()

    @staticmethod
    def rounded(side: Any) -> Any:
        """In groups of 128 values, of which each has sixteen."""
        import torch

        rows = []
        for group in side.flatten().split(128):
            scale = (group.max() - group.min()) / 15
            zero = torch.clamp(-torch.round(group.min() / scale), 0, 15)
            rows.append((torch.clamp(torch.round(group / scale) + zero, 0, 15) - zero) * scale)
        return torch.cat(rows).reshape(side.shape)


@pytest.mark.parametrize("quant", [False, True])
def test_losses_are_those_of_bitsandbytes_in_low_rank(tmp_path: Path, tiny_model: Path, quant: bool) -> None:
    """Below the rank of the gradients: beyond it Adam makes steps of rounding."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(2)
    folder = tmp_path / "wide"
    shutil.copytree(tiny_model, folder)
    config = AutoConfig.from_pretrained(tiny_model, intermediate_size=512)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    lab = Lab(tmp_path, folder, write_one_row(tmp_path / "tokens"))
    settings = {"galore_update_proj_gap": 4, "galore_scale": 0.5, "galore_proj_quant": quant}
    lab.run(STEADY | QGALORE | settings | {"galore_proj_group_size": 128})
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = losses_by_hand(model, ByHand(model, 4, quant=quant).step)
    assert losses(lab)[:4] == pytest.approx(expected[:4], abs=1e-5)
    assert losses(lab) == pytest.approx(expected, rel=1e-4)  # a new projection sees rounding
    assert losses(lab)[-1] < losses(lab)[0] - 0.1

    states = [flat(state) for state in optimizer_state(lab, 6)["state"].values() if "gap" in state]
    assert len(states) == 14
    assert [state["state1"].dtype == torch.uint8 for state in states] == 2 * ([False] * 4 + [True] * 3)  # 4096 values
    assert all(("right_codes" in state or "left_codes" in state) == quant for state in states)


def flat(state: dict[str, Any]) -> dict[str, Any]:
    """Where bitsandbytes stores what is quantized is a dictionary of its own."""
    inner = [value for value in state.values() if isinstance(value, dict)]
    return state | (inner[0] if inner else {})


def gaps(lab: Lab, steps: int) -> list[set[int]]:
    return [
        {state["gap"] for state in optimizer_state(lab, step)["state"].values() if "gap" in state}
        for step in range(1, steps + 1)
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 1, 2, 2, 4, 4]),
        ({"galore_gamma_proj": 3}, [1, 1, 3, 9, 9, 9]),
        ({"galore_gamma_proj": 1}, [1, 1, 1, 1, 1, 1]),
        ({"galore_queue_size": 1}, [1, 2, 4, 4, 8, 8]),
        ({"galore_queue_size": 4}, [1, 1, 1, 1, 2, 2]),
        ({"galore_queue_size": 9}, [1, 1, 1, 1, 1, 1]),
    ],
)
def test_projections_that_hardly_differ_are_kept_for_longer(
    tmp_path: Path, tiny_model: Path, settings: dict[str, Any], expected: list[int]
) -> None:
    """At such a learning rate the gradient of the one row stays what it is."""
    lab = Lab(tmp_path, tiny_model, write_one_row(tmp_path / "tokens"))
    lazy = {"galore_cos_threshold": 0.4, "galore_update_proj_gap": 1, "galore_queue_size": 2, "learning_rate": 1e-9}
    lab.run(STEADY | QGALORE | lazy | settings | {"save_steps": 1})
    assert gaps(lab, 6) == [{gap} for gap in expected]


def test_projections_that_differ_are_renewed(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    lab = Lab(tmp_path, tiny_model, tokens)
    often = {"galore_cos_threshold": 0.9999, "galore_update_proj_gap": 1, "galore_queue_size": 1}
    lab.run(SHORT | QGALORE | often | {"save_steps": 1})
    assert gaps(lab, 6) == [{1}] * 6  # rows differ


@pytest.mark.parametrize(
    ("settings", "cut"),
    [
        (QUANT | {"galore_rank": 32}, 4.5),  # 4096 moments of an MLP's matrix: in 8 bits
        ({"torch_dtype": "bfloat16", **QUANT, "galore_with_embedding": True}, 4.5),
        ({"galore_cos_threshold": 0.0, "galore_update_proj_gap": 1, "galore_queue_size": 2}, 4.5),
        (QUANT, "end"),
    ],
)
def test_a_run_that_was_cut_off_ends_in_the_same_bytes(
    tmp_path: Path, tiny_model: Path, tokens: Path, settings: dict[str, Any], cut: float | str
) -> None:
    arguments = SHORT | QGALORE | {"galore_update_proj_gap": 3} | settings
    lab, _, _ = cut_off_and_whole(tmp_path, tiny_model, tokens, arguments, cut)
    assert json.loads((lab.out / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"galore_proj_bits": 8}, "`--galore_proj_bits` is a part of Q-GaLore: add `--galore_quantization true`"),
        ({"galore_quantization": True, "use_galore": False}, "is a form of GaLore: add `--use_galore true`"),
        ({"galore_quantization": True, "galore_proj_type": "left"}, "`--galore_proj_type left` does not go with"),
        ({"galore_quantization": True, "galore_optim_per_parameter": True}, "`--galore_optim_per_parameter` does not"),
    ],
)
def test_what_does_not_go_together(given: dict[str, Any], line: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        TrainArguments(**{"train_type": "full", "use_galore": True} | given)
    assert line in str(caught.value)
