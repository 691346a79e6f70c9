"""A checkpoint's optimizer: what it may hold, and that another one does not take it up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.errors import ArgumentsError, ModelError
from stages.training.optimizers.state import takes_up_its_own, writes_plain_state
from tests.stages.training.lab import Lab
from tests.stages.training.reference import STEADY, write_one_row


def stepped(optimizer: Any, model: Any) -> Any:
    import torch

    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer


def linear() -> Any:
    import torch

    return torch.nn.Linear(3, 2)


def test_tensors_and_plain_values_are_written() -> None:
    import torch

    model = linear()
    optimizer = stepped(torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1)), model)
    writes_plain_state(optimizer)
    optimizer.state[model.bias]["kept"] = {"sizes": [torch.Size([2]), (1, 2.0, None, "text")], "on": True}
    assert set(optimizer.state_dict()["state"][1]) == {"step", "exp_avg", "exp_avg_sq", "kept"}


@pytest.mark.parametrize("value", [lambda: 0, Path("folder"), {1: [object]}])
def test_what_a_checkpoint_cannot_give_back(value: Any) -> None:
    import torch

    model = linear()
    optimizer = stepped(torch.optim.SGD(model.parameters(), lr=0.1), model)
    writes_plain_state(optimizer)
    optimizer.state[model.bias]["kept"] = value
    with pytest.raises(
        ArgumentsError, match=r"the state of SGD holds a (function|PosixPath|type), which a checkpoint cannot give back"
    ):
        optimizer.state_dict()


@pytest.mark.parametrize(
    ("kind", "groups", "message"),
    [
        ("Adam", 1, None),
        (
            "SGD",
            1,
            "the checkpoint's optimizer has amsgrad, betas, capturable, decoupled_weight_decay, eps, and SGD has "
            "dampening, momentum, nesterov: give the `--optimizer` and `--optim` that it was trained with, or",
        ),
        ("AdamW", 2, "the checkpoint's optimizer has groups of 2 parameters, and AdamW of 1 and 1: give the"),
    ],
)
def test_another_optimizer_does_not_take_it_up(kind: str, groups: int, message: str | None) -> None:
    import torch

    model = linear()
    old = stepped(torch.optim.AdamW(model.parameters()), model)
    torch.optim.lr_scheduler.StepLR(old, 2)  # which leaves something in the groups
    parts = [[model.weight], [model.bias]] if groups == 2 else [[model.weight, model.bias]]
    new = getattr(torch.optim, kind)([{"params": part} for part in parts], lr=0.1)
    takes_up_its_own(new)
    if message is None:
        new.load_state_dict(old.state_dict())
        assert set(new.state[model.bias]) == {"step", "exp_avg", "exp_avg_sq"}
        return
    with pytest.raises(ModelError) as raised:
        new.load_state_dict(old.state_dict())
    assert str(raised.value).startswith(message)


@pytest.mark.slow
def test_a_checkpoint_of_another_optimizer(tmp_path: Path, tiny_model: Path) -> None:
    first = Lab(tmp_path / "first", tiny_model, write_one_row(tmp_path / "tokens"))
    first.run(STEADY | {"max_steps": 2})
    lab = Lab(tmp_path / "second", tiny_model, tmp_path / "tokens")
    lab.inputs["checkpoint"] = first.attachments / "checkpoint-2"
    given = {"resume_from_checkpoint": "local::checkpoint", "max_steps": 4}
    with pytest.raises(ModelError, match=r"the checkpoint's optimizer has amsgrad, .* and SGD has dampening"):
        lab.run(STEADY | given | {"optim": "sgd"})
    assert lab.run(STEADY | given | {"optim": "sgd", "resume_only_model": True})["global_step"] == 4
    again = Lab(tmp_path / "third", tiny_model, tmp_path / "tokens")
    again.inputs["checkpoint"] = first.attachments / "checkpoint-2"
    assert again.run(STEADY | given)["global_step"] == 4
