"""VeRA, FourierFT and BOFT against their papers' formulas, written out as parametrizations of the base's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import TrainArguments
from stages.errors import ArgumentsError, ModelError
from stages.training.tuners import get_tuner
from tests.stages.training.lab import Lab
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
)

METHODS: dict[str, dict[str, Any]] = {
    "vera": {"vera_rank": 6, "learning_rate": 0.1},
    "vera, no projection stored": {"vera_rank": 6, "vera_projection_prng_key": False, "learning_rate": 0.1},
    "vera of another seed": {"vera_rank": 6, "vera_projection_prng_key": 11, "learning_rate": 0.1},
    "fourierft": {"fourier_n_frequency": 40, "fourier_scaling": 60.0},
    "boft": {"boft_block_size": 8},
    "boft by number": {"boft_block_num": 4},
}
TRAINED = {
    "vera": {"vera_lambda_b.default", "vera_lambda_d.default"},
    "fourierft": {"fourierft_spectrum.default"},
    "boft": {"boft_R.default", "boft_s.default"},
}
WEIGHTS = "adapter_model.safetensors"


def given(kind: str) -> dict[str, Any]:
    return {"train_type": kind.replace(",", "").split()[0], "weight_decay": 0.0, **METHODS[kind]}


def layers_of(model: Any) -> dict[str, Any]:
    """Every linear layer but the head, by its path in the base model."""
    return {
        path.removeprefix("base_model.model."): module
        for path, module in model.named_modules()
        if path.endswith("_proj")
    }


def by_formula(lab: Lab, arguments: dict[str, Any]) -> Any:
    """The base model; each linear layer's weight is what the paper says, from the same start."""
    import torch
    from torch import nn
    from torch.nn.utils import parametrize

    class Vera(nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.b = nn.Parameter(torch.zeros(layer.out_features))
            self.d = nn.Parameter(torch.full((arguments["vera_rank"],), 0.1))
            key = arguments.get("vera_projection_prng_key", True)
            generator = torch.Generator().manual_seed(0 if isinstance(key, bool) else key)
            # Kaiming's uniform for the widest layer: 128 inputs, 128 outputs
            self.first = torch.empty(6, 128).uniform_(-((6 / 128) ** 0.5), (6 / 128) ** 0.5, generator=generator)
            self.second = torch.empty(128, 6).uniform_(-1.0, 1.0, generator=generator)

        def forward(self, weight: Any) -> Any:
            outputs, inputs = weight.shape
            return weight + torch.diag(self.b) @ self.second[:outputs] @ torch.diag(self.d) @ self.first[:, :inputs]

    class Fourier(nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.spectrum = nn.Parameter(layer.fourierft_spectrum["default"].detach().clone())
            self.places = layer.indices["default"]

        def forward(self, weight: Any) -> Any:
            """The sum of the inverse transform, entry by entry, as waves."""
            outputs, inputs = weight.shape
            rows, columns = torch.arange(outputs)[:, None, None], torch.arange(inputs)[None, :, None]
            angle = 2 * torch.pi * (rows * self.places[0] / outputs + columns * self.places[1] / inputs)
            waves = (self.spectrum * torch.cos(angle)).sum(-1) / (outputs * inputs)
            return weight + arguments["fourier_scaling"] * waves

    class Boft(nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            size = arguments.get("boft_block_size") or layer.in_features // arguments["boft_block_num"]
            self.blocks = nn.Parameter(torch.zeros(layer.in_features // size, size, size))
            self.scale = nn.Parameter(torch.ones(layer.out_features, 1))

        def forward(self, weight: Any) -> Any:
            skew = (self.blocks - self.blocks.mT) / 2
            one = torch.eye(skew.shape[-1])
            rotation = torch.block_diag(*((one - skew) @ torch.linalg.inv(one + skew)))
            return self.scale * (weight @ rotation.T)

    formula = {"vera": Vera, "fourierft": Fourier, "boft": Boft}[arguments["train_type"]]
    model = base_model(lab.inputs["model"]).requires_grad_(False)
    tuned = layers_of(prepared(lab, arguments))
    for path, layer in layers_of(model).items():
        parametrize.register_parametrization(layer, "weight", formula(tuned[path]))
    return model


@pytest.mark.parametrize("kind", METHODS)
def test_the_start(lab: Lab, kind: str) -> None:
    """What is trained, and the base's outputs, but for FourierFT, whose spectrum starts at random as in the paper."""
    arguments = given(kind)
    model = prepared(lab, arguments)
    trained = trained_names(model)
    linear = layers_of(base_model(lab.inputs["model"]))
    names = TRAINED[arguments["train_type"]]
    assert trained == {f"base_model.model.{path}.{name}" for path in linear for name in names}
    difference = (logits_of(model) - logits_of(base_model(lab.inputs["model"]))).abs().max()
    assert difference > 1e-3 if kind == "fourierft" else difference < 1e-6


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.filterwarnings("ignore:Specified to not:UserWarning")
def test_against_the_formula(lab: Lab, kind: str) -> None:
    """Losses, and what the artifact says: opened by peft, and merged by us."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file

    arguments = PLAIN | given(kind)
    start = {name: value.clone() for name, value in prepared(lab, arguments).state_dict().items()}
    lab.run(arguments)
    reference = by_formula(lab, arguments)
    assert logged_losses(lab) == pytest.approx(batch_losses(reference, lab, arguments), abs=1e-5)
    live = logits_of(reference)
    base = base_model(lab.inputs["model"])
    assert (live - logits_of(base)).abs().max() > 1e-2
    torch.testing.assert_close(logits_of(merged(lab, lab.out)), live, atol=1e-4, rtol=0)

    stored = load_file(lab.out / WEIGHTS)
    shared = {"base_model.vera_A", "base_model.vera_B"} if kind in ("vera", "vera of another seed") else set()
    trained = {name.replace(".default", "") for name in start if any(end in name for end in ("lambda", "ft_"))}
    assert set(stored) == {name.replace(".default", "") for name in trained} | shared
    for name in trained:
        assert not torch.equal(stored[name], start[f"{name}.default"]), f"{name} has not moved"
    theirs = PeftModel.from_pretrained(base, lab.out)
    torch.testing.assert_close(logits_of(theirs), live, atol=1e-4, rtol=0)
    config = json.loads((lab.out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == ""


@pytest.mark.parametrize("dropout", ["vera_dropout", "boft_dropout"])
def test_dropout_in_training_only(lab: Lab, dropout: str) -> None:
    import torch

    kind = dropout.partition("_")[0]
    model = prepared(lab, given(kind) | {dropout: 0.5})
    for name, parameter in model.named_parameters():
        if "vera_lambda_b" in name or "boft_R" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(logits_of(model), logits_of(model))
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("arguments", "change"),
    [
        ({"train_type": "vera", "vera_d_initial": 0.3}, ("vera_lambda_d", 0.3)),
        ({"train_type": "boft", "boft_block_size": 16}, ("boft_R", (1, 4, 16, 16))),
        ({"train_type": "boft", "boft_block_num": 8}, ("boft_R", (1, 8, 8, 8))),
        ({"train_type": "fourierft", "fourier_n_frequency": 7}, ("fourierft_spectrum", (7,))),
    ],
)
def test_parameters(lab: Lab, arguments: dict[str, Any], change: tuple[str, Any]) -> None:
    model = prepared(lab, arguments)
    name, value = change
    tensor = model.state_dict()[f"base_model.model.model.layers.0.self_attn.q_proj.{name}.default"]
    if isinstance(value, float):
        assert (tensor == value).all()
    else:
        assert tuple(tensor.shape) == value


def test_whole_modules(lab: Lab) -> None:
    """They are trained, stored and merged with every kind."""
    import torch
    from peft import PeftModel

    for kind in ("vera", "fourierft", "boft"):
        arguments = PLAIN | given(kind) | {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}
        lab.run(arguments | {"max_steps": 2, "save_strategy": "no"})
        theirs = PeftModel.from_pretrained(base_model(lab.inputs["model"]), lab.out)
        torch.testing.assert_close(logits_of(merged(lab, lab.out)), logits_of(theirs), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["vera", "fourierft", "boft"])
def test_bfloat16(lab: Lab, kind: str) -> None:
    """What is trained stays in float32, where peft's methods compute."""
    from safetensors.torch import load_file

    metrics = lab.run(PLAIN | given(kind) | {"torch_dtype": "bfloat16"})
    assert metrics["last_loss"] < metrics["first_loss"] + 0.1
    assert {str(tensor.dtype) for tensor in load_file(lab.out / WEIGHTS).values()} == {"torch.float32"}


@pytest.mark.parametrize("kind", ["vera", "fourierft", "boft"])
def test_resume(tmp_path: Path, tiny_model: Path, tokens: Path, kind: str) -> None:
    more = {"vera": {"vera_dropout": 0.2}, "boft": {"boft_dropout": 0.3}}.get(kind, {})
    check_resume(tmp_path, tiny_model, tokens, given(kind) | more)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"train_type": "fourierft", "fourier_n_frequency": 2049},
            "`--fourier_n_frequency 2049`: the spectrum of model.layers.0.self_attn.k_proj has 32 x 64 = 2048 entries",
        ),
        ({"train_type": "boft", "boft_block_size": 7}, "`--boft_block_size 7` does not divide the 64 inputs of model"),
        ({"train_type": "boft", "boft_block_num": 3}, "`--boft_block_num 3` does not divide the 64 inputs of model"),
        ({"train_type": "boft", "boft_block_size": 0}, "`--boft_block_size 0` leaves the blocks to `--boft_block_num`"),
        (
            {"train_type": "vera", "target_modules": ["embed_tokens"]},
            "VeRA adapts linear layers alone, and model.embed_tokens is of type Embedding: leave it out",
        ),
        ({"train_type": "vera", "target_modules": ["nothing"]}, "`--target_modules nothing`: the model has no such"),
    ],
)
def test_refused(lab: Lab, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentsError, match=message):
        get_tuner(TrainArguments(**arguments)).check(base_model(lab.inputs["model"]))


def test_a_checkpoint_of_another_method_or_scale(lab: Lab) -> None:
    lab.run(PLAIN | given("fourierft"))
    for arguments, message in (
        (given("vera"), "its peft_type is FOURIERFT, these arguments make it VERA"),
        (given("fourierft") | {"fourier_scaling": 61.0}, "its scaling is 60.0, these arguments make it 61.0"),
        (given("fourierft") | {"fourier_n_frequency": 41}, r"fourierft_spectrum is \(40,\), these arguments make it"),
    ):
        tuner = get_tuner(TrainArguments(**arguments))
        model = tuner.prepare(base_model(lab.inputs["model"]))
        with pytest.raises(ModelError, match=message):
            tuner.load(model, lab.out)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("0", 0), ("1", 1), (7, 7)])
def test_what_the_key_of_vera_may_be(text: str | int, value: bool | int) -> None:
    found = TrainArguments(train_type="vera", vera_projection_prng_key=text).vera_projection_prng_key
    assert (found, type(found)) == (value, type(value))


def test_a_layer_that_peft_has_no_adapter_for(lab: Lab) -> None:
    """As quantized layers of some kinds are."""
    import torch
    from torch import nn

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qweight = nn.Parameter(torch.zeros(4, 4), requires_grad=False)
            self.in_features = self.out_features = 64

    model = base_model(lab.inputs["model"])
    model.model.layers[0].self_attn.q_proj = Packed()
    for kind, method in (("fourierft", "FourierFT"), ("vera", "VeRA"), ("boft", "BOFT")):
        tuner = get_tuner(TrainArguments(**given(kind)))
        tuner.check(model)
        with pytest.raises(
            ModelError, match=rf"^{method} cannot be put onto this model: Target module Packed\(\) is not"
        ):
            tuner.prepare(model)
        model = base_model(lab.inputs["model"])
        model.model.layers[0].self_attn.q_proj = Packed()
