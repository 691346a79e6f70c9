"""Packed rows do not see each other: their logits and their loss are those of the rows alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.errors import DataError, ModelError
from stages.training.batches import collate
from stages.training.packs import PackedRows, check_isolation, read_packs
from stages.training.rows import IGNORED, read_rows
from tests.stages.training.tokens import write_arrow

X = IGNORED
LENGTHS = [9, 1, 4, 2, 7, 3]
PACKS = [[0, 1, 3], [4, 2], [5]]


@pytest.fixture
def packs(tmp_path: Path) -> PackedRows:
    import random

    generator = random.Random(4)
    ids = [[generator.randrange(64) for _ in range(length)] for length in LENGTHS]
    labels = [[X if len(row) > 3 and at % 3 == 1 else token for at, token in enumerate(row)] for row in ids]
    ids[1], labels[1] = [5, 6], [X, 6]
    rows = read_rows(write_arrow(tmp_path / "train.arrow", {"input_ids": ids, "labels": labels}), vocabulary=64)
    return read_packs(write_arrow(tmp_path / "train_packs.arrow", {"rows": PACKS}), rows)


def make_model(family: str, attention: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(family, vocab_size=64, num_key_value_heads=2, pad_token_id=0, **sizes)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # logits of about 1, so that a leak would be seen
    return model


def test_read(packs: PackedRows) -> None:
    assert len(packs) == 3
    assert [packs.members(index) for index in range(3)] == PACKS
    assert packs.lengths == [13, 11, 3]
    assert packs.num_tokens == 27
    assert packs[1]["position_ids"].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3]
    assert packs[1]["labels"][[0, 7]].tolist() == [X, X]
    assert packs[1]["input_ids"].tolist() == [*packs.rows[4]["input_ids"], *packs.rows[2]["input_ids"]]
    with pytest.raises(IndexError):
        packs[3]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([[0, 1, 3], [4, 2], [6]], "names the row 6, and there are 6: tokenize again"),
        ([[0, 1, 3], [4, 2]], "does not hold each of the 6 rows once"),
        ([[0, 1, 3], [4, 2], [5], [5]], "does not hold each of the 6 rows once"),
        ([[0, 1, 3], [4, 2], [4]], "does not hold each of the 6 rows once"),
        ([[0, 1, 3], [], [4, 2], [5]], "has a pack without rows"),
    ],
)
def test_refused(packs: PackedRows, tmp_path: Path, numbers: list[list[int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_packs(write_arrow(tmp_path / "other.arrow", {"rows": numbers}), packs.rows)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_logits_and_loss_are_those_of_the_rows_alone(packs: PackedRows, family: str, attention: str) -> None:
    import torch

    model = make_model(family, attention).train()
    batch = collate([packs[index] for index in range(3)])
    packed = model(**batch, use_cache=False)
    total, count = 0.0, 0
    for number, members in enumerate(PACKS):
        at = 0
        for row in members:
            alone = collate([packs.rows[row]])
            out = model(**alone, use_cache=False)
            length = alone["input_ids"].shape[1]
            torch.testing.assert_close(packed.logits[number, at : at + length], out.logits[0], rtol=0, atol=1e-5)
            assert out.logits.abs().max() > 0.5
            at += length
            labels = int((alone["labels"][:, 1:] != X).sum())
            total, count = total + float(out.loss.detach()) * labels, count + labels
    assert count == int((batch["labels"][:, 1:] != X).sum())
    assert float(packed.loss.detach()) == pytest.approx(total / count, rel=1e-5)


def test_what_leaks_is_found() -> None:
    """The model itself is right; one that is given a mask as well is not."""
    import torch

    model = make_model("llama", "sdpa")
    before = torch.random.get_rng_state()
    check_isolation(model.train())
    assert model.training
    assert torch.equal(before, torch.random.get_rng_state())

    class Leaks(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, input_ids: Any, position_ids: Any, use_cache: bool) -> Any:
            mask = torch.ones_like(input_ids)
            return model(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache, attention_mask=mask)

    with pytest.raises(ModelError, match="cannot be trained on packed rows: its attention reaches into the row bef"):
        check_isolation(Leaks())
