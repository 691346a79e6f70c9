"""ReFT: interventions alone are trained; each of the six computes what its formula says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import MergeArguments, SftArguments, SftThenExportArguments, TrainArguments
from stages.context import Context
from stages.errors import ArgumentsError, ModelError
from stages.merge import merge
from stages.train import STAGE
from stages.training.tuners.reft import load_reft
from tests.stages.test_train import tokens as tokens
from tests.stages.training.lab import SHORT, Lab, cut_off_and_whole, digests
from tests.stages.training.reference import ROW, STEADY, losses, losses_by_hand, write_one_row

KINDS: dict[str, dict[str, Any]] = {
    "Loreft": {"act_fn": "relu"},
    "Noreft": {"add_bias": True},
    "Consreft": {},
    "Lobireft": {},
    "Direft": {},
    "Nodireft": {"add_bias": False},
}
REFT = {"train_type": "reft", "learning_rate": 1e-2}


def of_kind(kind: str) -> dict[str, Any]:
    return REFT | {"reft_intervention_type": f"{kind}Intervention", "reft_args": KINDS[kind], "reft_rank": 3}


def stored(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "reft_model.safetensors")


@pytest.fixture
def lab(tmp_path: Path, tiny_model: Path, tokens: Path) -> Lab:
    return Lab(tmp_path, tiny_model, tokens)


FORMULAS: dict[str, Callable[..., Any]] = {
    "Loreft": lambda h, r, w, b, c, relu: h + (relu(h @ w.T + b) - h @ r) @ r.T,
    "Noreft": lambda h, r, w, b, c, relu: h + (h @ w.T + b - h @ r - c) @ r.T,
    "Consreft": lambda h, r, w, b, c, relu: h + (b - h @ r) @ r.T,
    "Lobireft": lambda h, r, w, b, c, relu: h + b @ r.T,
    "Direft": lambda h, r, w, b, c, relu: h + (h @ w.T + b) @ r.T,
    "Nodireft": lambda h, r, w, b, c, relu: h + (h @ w.T + b) @ r.T,
}
"""With row vectors, and R or P as [hidden, rank]; c is the bias of Ph."""


def model_by_hand(folder: Path, kind: str, start: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The base model with formulas at the ends of its layers, and what is trained, from the same start."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    model.requires_grad_(False)
    trained: list[Any] = []
    for number, layer in enumerate(model.model.layers):
        mine = {name.split(".reft.")[1]: tensor for name, tensor in start.items() if f"layers.{number}.reft." in name}

        class Own(torch.nn.Module):
            def __init__(self, mine: dict[str, Any] = mine) -> None:
                super().__init__()
                self.W = torch.nn.Parameter(mine.get("source.weight", torch.zeros(3, 64)))
                self.b = torch.nn.Parameter(mine.get("source.bias", mine.get("source")))
                self.c = torch.nn.Parameter(mine.get("projection.bias", torch.zeros(3)))
                if "projection.weight" in mine:
                    self.R = torch.nn.Parameter(mine["projection.weight"].T.contiguous())
                else:  # the tall side up, as pyreft has it
                    self.R = torch.nn.Parameter(torch.nn.init.orthogonal_(torch.empty(64, 3)))
                    torch.nn.utils.parametrizations.orthogonal(self, "R", use_trivialization=False)
                    self.parametrizations.R.original.data.copy_(mine["projection.reflections"] + torch.eye(64, 3))

            def forward(self, layer: Any, inputs: Any, h: Any) -> Any:
                return FORMULAS[kind](h, self.R, self.W, self.b, self.c, torch.relu)

        own = Own()
        trained += list(own.parameters())
        layer.register_forward_hook(own)
        layer.own = own
    return model, trained


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_the_formula(tmp_path: Path, tiny_model: Path, kind: str) -> None:
    """From a start that an earlier run has left."""
    import torch

    first = Lab(tmp_path / "first", tiny_model, write_one_row(tmp_path / "tokens"))
    metrics = first.run(STEADY | of_kind(kind) | {"max_steps": 1})
    lab = Lab(tmp_path / "second", tiny_model, tmp_path / "tokens")
    lab.inputs["adapter"] = first.out
    lab.run(STEADY | of_kind(kind) | {"weight_decay": 0})

    start = stored(first.out)
    model, trained = model_by_hand(tiny_model, kind, {name: tensor.clone() for name, tensor in start.items()})
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0)
    assert losses(lab) == pytest.approx(losses_by_hand(model, lambda _: optimizer.step() and None), abs=1e-5)
    assert losses(lab)[-1] < losses(lab)[0]
    assert metrics["num_trainable_parameters"] == sum(tensor.numel() for tensor in start.values())
    end = stored(lab.out)
    assert start.keys() == end.keys()
    assert [name for name in start if start[name].equal(end[name])] == []  # all of it moved


@pytest.mark.parametrize("kind", ["Loreft", "Consreft", "Lobireft", "Direft"])
def test_rotations_stay_orthonormal_and_the_folder_opens(lab: Lab, kind: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    before = digests(lab.inputs["model"])
    metrics = lab.run(SHORT | of_kind(kind))
    assert digests(lab.inputs["model"]) == before
    assert sorted(path.name for path in lab.out.iterdir()) == ["reft_config.json", "reft_model.safetensors"]
    assert json.loads((lab.out / "reft_config.json").read_text()) == {
        "layers": None,
        "rank": 3,
        "reft_args": KINDS[kind],
        "reft_type": f"{kind}Intervention",
    }
    base = AutoModelForCausalLM.from_pretrained(lab.inputs["model"])
    with torch.no_grad():
        plain = base(torch.tensor([ROW])).logits
        opened = load_reft(base, lab.out)
        assert (opened(torch.tensor([ROW])).logits - plain).abs().max() > 1e-3
        generated = opened.generate(torch.tensor([ROW]), max_new_tokens=4, do_sample=False)
        uncached = opened.generate(torch.tensor([ROW]), max_new_tokens=4, do_sample=False, use_cache=False)
    assert generated.equal(uncached)
    for layer in opened.model.layers:
        rows = layer.reft.projection.weight
        torch.testing.assert_close(rows @ rows.T, torch.eye(3), atol=1e-5, rtol=0)
    assert metrics["last_loss"] < metrics["first_loss"]
    assert STAGE.output_kind(TrainArguments(train_type="reft")) == "adapter"


def test_layers_and_rank(lab: Lab) -> None:
    lab.run(SHORT | REFT | {"reft_layers": [1], "reft_rank": 5})
    shapes = {name: tuple(tensor.shape) for name, tensor in stored(lab.out).items()}
    assert shapes == {
        "model.layers.1.reft.projection.reflections": (64, 5),
        "model.layers.1.reft.source.bias": (5,),
        "model.layers.1.reft.source.weight": (5, 64),
    }


def test_dropout_is_for_training_alone_and_dtype_is_that_of_w(tmp_path: Path, tiny_model: Path) -> None:
    import torch

    runs = {}
    for share in (0.0, 0.5):
        lab = Lab(tmp_path / str(share), tiny_model, write_one_row(tmp_path / str(share) / "tokens"))
        settings = {"reft_args": {"dropout": share, "dtype": "bfloat16"}, "eval_strategy": "steps", "eval_steps": 1}
        (lab.inputs["tokens"] / "validation.arrow").write_bytes((lab.inputs["tokens"] / "train.arrow").read_bytes())
        runs[share] = lab.run(STEADY | REFT | settings | {"max_steps": 2, "eval_on_start": True})
    assert runs[0.0]["first_eval_loss"] == runs[0.5]["first_eval_loss"]
    assert runs[0.0]["first_loss"] != runs[0.5]["first_loss"]
    types = {name.split(".reft.")[1]: tensor.dtype for name, tensor in stored(lab.out).items()}
    assert types == {
        "projection.reflections": torch.float32,
        "source.bias": torch.bfloat16,
        "source.weight": torch.bfloat16,
    }


@pytest.mark.parametrize(("kind", "cut"), [("Loreft", 4.5), ("Noreft", 4.5), ("Loreft", "end")])
def test_a_run_that_was_cut_off_ends_in_the_same_bytes(
    tmp_path: Path, tiny_model: Path, tokens: Path, kind: str, cut: float | str
) -> None:
    arguments = SHORT | of_kind(kind) | {"reft_args": KINDS[kind] | {"dropout": 0.1}}
    cut_off_and_whole(tmp_path, tiny_model, tokens, arguments, cut)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"reft_layers": [0, 7]}, "`--reft_layers 7`: model.layers has layers 0 to 1"),
        ({"reft_rank": 65}, "`--reft_rank 65` is above the model's hidden size, 64"),
        ({"reft_args": {"drop": 1}}, "`--reft_args` drop: LoreftIntervention takes dropout, act_fn, dtype"),
        ({"reft_args": {"dropout": 1.5}}, "`--reft_args` dropout 1.5: give a share from 0 to below 1"),
        ({"reft_args": {"dtype": "int8"}}, "`--reft_args` dtype int8: choose from float32, bfloat16"),
        ({"reft_args": {"act_fn": "reluu"}}, "`--reft_args` act_fn reluu: choose from "),
        ({"reft_intervention_type": "NoreftIntervention"}, "needs add_bias: give `--reft_args '{\"add_bias\": true}'`"),
        (
            {"reft_intervention_type": "NoreftIntervention", "reft_args": {"add_bias": 1}},
            "`--reft_args` add_bias 1: give true or false",
        ),
        (
            {"reft_intervention_type": "LobireftIntervention", "reft_args": {"act_fn": "relu"}},
            "`--reft_args` act_fn: LobireftIntervention takes dropout, dtype",
        ),
    ],
)
def test_what_an_intervention_cannot_be(lab: Lab, arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        lab.run(SHORT | REFT | arguments)
    assert line in str(caught.value)


def test_gradient_checkpointing_is_off_and_not_to_be_asked_for() -> None:
    given = {"model": "m", "dataset": ["d"], "train_type": "reft"}
    assert not SftArguments(**given).gradient_checkpointing
    assert not SftArguments(**given).for_stage(TrainArguments).gradient_checkpointing
    assert SftArguments(**given | {"train_type": "lora"}).gradient_checkpointing
    with pytest.raises(ArgumentsError, match="`--gradient_checkpointing true` does not go with `--train_type reft`"):
        SftArguments(**given, gradient_checkpointing=True)


def test_interventions_are_not_merged(lab: Lab) -> None:
    lab.run(SHORT | REFT)
    merged = lab.folder / "merged"
    merged.mkdir()
    inputs = {"model": lab.inputs["model"], "adapter": lab.out}
    with pytest.raises(ModelError, match=r"out1 is a ReFT: interventions on hidden states cannot be folded into"):
        merge(MergeArguments(), inputs, merged, Context(lab.folder, lab.folder))
    with pytest.raises(ArgumentsError, match="`--train_type reft` leaves interventions, which cannot be folded into"):
        SftThenExportArguments(model="m", dataset=["d"], train_type="reft")


def test_a_checkpoint_of_another_reft(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    first = Lab(tmp_path / "first", tiny_model, tokens)
    first.run(SHORT | REFT)
    lab = Lab(tmp_path / "second", tiny_model, tokens)
    lab.inputs["adapter"] = first.out
    with pytest.raises(ModelError, match="is of another ReFT: its rank is 4, these arguments make it 2"):
        lab.run(SHORT | REFT | {"reft_rank": 2})
    lora = Lab(tmp_path / "lora", tiny_model, tokens)
    lora.run(SHORT)
    lab.inputs["adapter"] = lora.out
    with pytest.raises(ModelError, match=r"has no reft_config.json: it is not one of a ReFT training"):
        lab.run(SHORT | REFT)
