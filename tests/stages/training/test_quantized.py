"""Adapters on a base in few bits, against transformers', bitsandbytes', hqq's and peft's own use of each other."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import QuantizeArguments, TrainArguments
from stages.artifacts.key import action_key
from stages.context import Context
from stages.errors import ArgumentsError, MissingPackage, ModelError
from stages.quantize import quantize
from stages.registry import get_stage
from stages.training.loading import load_model, load_skeleton
from stages.training.precision import choose_precision
from stages.training.quantized import count_weights, plan_quantization
from stages.training.tuners import get_tuner
from tests.stages.training.lab import Lab, digests
from tests.stages.training.tokens import write_arrow
from tests.stages.training.tuners.methods import (
    PLAIN,
    base_model,
    batch_losses,
    check_resume,
    logged_losses,
    logits_of,
    merged,
    trained_names,
    write_tokens,
)

FOUR = {"quant_method": "bnb", "quant_bits": 4}
EIGHT = {"quant_method": "bnb", "quant_bits": 8}
HQQ = {"quant_method": "hqq", "quant_bits": 4}
LONG = {"train_type": "longlora"}
LINEAR = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
"""Weights of the tiny model's linear layers but the head."""


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A model whose linear layers have a bias."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny-qwen2"
    shutil.copytree(tiny_model, folder)
    sizes = json.loads((tiny_model / "config.json").read_text())
    names = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    torch.manual_seed(1)
    model = Qwen2ForCausalLM(Qwen2Config(**{name: sizes[name] for name in names.split()}))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def loaded(folder: Path, **given: Any) -> Any:
    """The base as training loads it."""
    arguments = TrainArguments(**given)
    skeleton = load_skeleton(folder)
    precision = choose_precision(arguments, "float32")
    return load_model(folder, arguments, precision, plan_quantization(arguments, skeleton, precision))


def by_the_libraries(folder: Path, given: dict[str, Any]) -> Any:
    """The quantized base, made without us."""
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    bits = given["quant_bits"]
    if given["quant_method"] == "bnb":
        config = BitsAndBytesConfig(
            load_in_8bit=bits == 8,
            load_in_4bit=bits == 4,
            bnb_4bit_quant_type=given.get("bnb_4bit_quant_type", "nf4"),
            bnb_4bit_use_double_quant=given.get("bnb_4bit_use_double_quant", True),
            bnb_4bit_compute_dtype=torch.float32,
        )
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
        for layer in model.modules():
            layer.support_avx512bf16_for_cpu = False  # else it computes in bfloat16 when it does not train
        return model
    model = base_model(folder)
    settings = BaseQuantizeConfig(nbits=bits, group_size=64, axis=given.get("hqq_axis", 1))
    for path, layer in list(model.named_modules()):
        if path.endswith("_proj"):
            model.set_submodule(path, HQQLinear(layer, settings, compute_dtype=torch.float32, device="cpu"))
    return model


def reference(lab: Lab, given: dict[str, Any]) -> Any:
    """Base and adapter as the libraries alone make them, from the same seed."""
    from peft import get_peft_model
    from transformers import set_seed

    set_seed(42)
    model = by_the_libraries(lab.inputs["model"], given)
    tuner: Any = get_tuner(TrainArguments(**given))
    tuner.plan(given["max_steps"])
    return get_peft_model(model, tuner.config(model))


def weights_of(layer: Any) -> Any:
    """As floats."""
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(layer).float()


def linear_layers(model: Any) -> dict[str, Any]:
    return {path: layer for path, layer in model.named_modules() if path.endswith("_proj")}


def held_bytes(layer: Any) -> int:
    """Of its weights, with all that it takes to read them."""
    parts = [layer.W_q if hasattr(layer, "W_q") else layer.weight]
    if hasattr(layer, "meta"):
        parts += [layer.meta["scale"], layer.meta["zero"]]
    elif hasattr(layer, "quant_state"):
        state = layer.weight.quant_state
        parts += [state.absmax, *([state.state2.absmax] if state.nested else [])]
    else:
        parts.append(layer.weight.SCB)
    return sum(part.numel() * part.element_size() for part in parts)


# What is trained beside what, and how long: the names of those parameters end so.
LORA = ("lora_A.default.weight", "lora_B.default.weight")
TRAINED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "lora": ({}, LORA),
    "dora": ({"use_dora": True}, (*LORA, "lora_magnitude_vector.default.weight")),
    "adalora": (
        {"train_type": "adalora", "adalora_orth_reg_weight": 0.0},
        ("lora_A.default", "lora_B.default", "lora_E.default"),
    ),
    "vera": ({"train_type": "vera", "vera_rank": 6}, ("vera_lambda_b.default", "vera_lambda_d.default")),
    "boft": ({"train_type": "boft", "boft_block_size": 8}, ("boft_R.default", "boft_s.default")),
    "fourierft": ({"train_type": "fourierft", "fourier_n_frequency": 40}, ("fourierft_spectrum.default",)),
}
CASES = [
    ("lora", FOUR),
    ("lora", FOUR | {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}),
    ("lora", EIGHT),
    *(("lora", HQQ | {"quant_bits": bits, "hqq_axis": axis}) for bits, axis in ((1, 0), (3, 0), (4, 1))),
    ("dora", FOUR),
    ("dora", HQQ),
    ("adalora", FOUR),
    ("adalora", EIGHT),
    *((way, kind) for way in ("vera", "boft") for kind in (FOUR, EIGHT, HQQ)),
    ("fourierft", FOUR),
    ("fourierft", EIGHT),
]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "kind"), CASES, ids=lambda value: value if isinstance(value, str) else str(value))
def test_against_the_libraries(lab: Lab, way: str, kind: dict[str, Any]) -> None:
    """Losses, what is trained, what moves, and what the artifact says to peft."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file

    own, names = TRAINED[way]
    given = PLAIN | {"weight_decay": 0.0, "save_strategy": "no", "eval_strategy": "no"} | own | kind
    theirs = reference(lab, given)
    linear = linear_layers(base_model(lab.inputs["model"]))
    assert trained_names(theirs) == {f"base_model.model.{path}.{name}" for path in linear for name in names}
    start = {name: value.detach().clone() for name, value in theirs.named_parameters()}

    metrics = lab.run(given)
    after = (lambda: None) if way != "adalora" else _allocation(theirs)
    assert logged_losses(lab) == pytest.approx(batch_losses(theirs, lab, given, after=after), abs=1e-5)
    stored = load_file(lab.out / "adapter_model.safetensors")
    assert len(stored) == metrics_of(lab, way)
    if way != "adalora":
        for name in trained_names(theirs):
            moved = stored[name.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector")]
            assert not torch.equal(moved, start[name]), f"{name} has not moved"
            torch.testing.assert_close(moved, theirs.get_parameter(name).detach(), atol=1e-4, rtol=0)
    for name, value in theirs.named_parameters():
        assert value.requires_grad or torch.equal(value, start[name])
    assert metrics["num_trainable_parameters"] == sum(start[name].numel() for name in trained_names(theirs))
    if way not in ("adalora", "vera"):
        opened = PeftModel.from_pretrained(by_the_libraries(lab.inputs["model"], given), lab.out)
        near = 5e-3 if kind == EIGHT else 1e-3  # there, inputs are rounded too
        torch.testing.assert_close(logits_of(opened), logits_of(theirs), atol=near, rtol=0)


def _allocation(model: Any) -> Callable[[], None]:
    """What AdaLoRA does after each step."""
    steps = iter(range(1, 99))
    return lambda: model.base_model.update_and_allocate(next(steps))


def metrics_of(lab: Lab, way: str) -> int:
    """Tensors of the artifact: two or three for each of 14 layers, and VeRA's shared two."""
    return {"dora": 42, "adalora": 42, "vera": 30, "fourierft": 14}.get(way, 28)


@pytest.mark.parametrize("kind", [FOUR, EIGHT, HQQ], ids=str)
def test_the_trainer_changes_nothing_but_the_adapter(lab: Lab, kind: dict[str, Any]) -> None:
    """And the step-0 output is the quantized base's."""
    import torch

    from stages.train import _Run

    for each in (lab.scratch, lab.attachments):
        each.mkdir(parents=True, exist_ok=True)
    run = _Run(TrainArguments(**PLAIN | {"max_steps": 2} | kind), lab.inputs, Context(lab.scratch, lab.attachments))
    trainer, _ = run._make_trainer()
    model = trainer.model
    base = by_the_libraries(lab.inputs["model"], kind)
    torch.testing.assert_close(logits_of(model), logits_of(base), atol=0, rtol=0)
    before = {path: weights_of(layer).clone() for path, layer in linear_layers(base).items()}
    floats = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer.train()
    trained = trained_names(model)
    assert trained == {name for name in floats if ".lora_" in name}
    for name, value in model.named_parameters():
        assert torch.equal(value, floats[name]) is (name not in trained), name
    for path, weight in before.items():
        layer = model.get_submodule(f"base_model.model.{path}").base_layer
        assert torch.equal(weights_of(layer), weight), path


# Bits of a weight with its scales: bitsandbytes one of 32 bits (of 8 and, for 256 of them, 32) for 64 weights, or one
# for a row of 64 or 128; hqq a scale and a zero of 32 bits for 64 weights, three bits packed in tens of 32.
BITS = [
    (FOUR | {"bnb_4bit_use_double_quant": False}, 4.5),
    (FOUR, 4.14),
    (EIGHT, 8.4),
    *((HQQ | {"quant_bits": bits}, bits + 1.0) for bits in (1, 2, 4, 8)),
    (HQQ | {"quant_bits": 3}, 4.25),
    (HQQ | {"quant_bits": 3, "hqq_axis": 0}, 4.5),
]


@pytest.mark.parametrize(("kind", "bits"), BITS, ids=str)
def test_a_quantized_base_takes_fewer_bytes(tiny_model: Path, kind: dict[str, Any], bits: float) -> None:
    model = loaded(tiny_model, **kind)
    layers = linear_layers(model)
    assert len(layers) == 14
    assert sum(map(held_bytes, layers.values())) * 8 / LINEAR == pytest.approx(bits, abs=0.15)
    assert type(model.lm_head).__name__ == "Linear"
    assert type(model.model.embed_tokens).__name__ == "Embedding"
    assert count_weights(model) == sum(value.numel() for value in base_model(tiny_model).parameters())


def test_more_bits_are_closer(tiny_model: Path) -> None:
    """In each of 14 layers, for either axis; by numbers for all of them."""
    floats = {path: layer.weight.detach() for path, layer in linear_layers(base_model(tiny_model)).items()}

    def errors(**kind: Any) -> list[float]:
        model = loaded(tiny_model, **kind)
        return [
            float((weights_of(layer) - floats[path]).norm() / floats[path].norm())
            for path, layer in linear_layers(model).items()
        ]

    for axis in (0, 1):
        found = [errors(quant_method="hqq", quant_bits=bits, hqq_axis=axis) for bits in (1, 2, 3, 4, 8)]
        for more, fewer in zip(found[1:], found, strict=False):
            assert all(error < other / 1.7 for error, other in zip(more, fewer, strict=True))
        assert max(found[-1]) < 0.008
        assert max(found[-2]) < 0.11
    four, fp4, eight = errors(**FOUR), errors(**FOUR, bnb_4bit_quant_type="fp4"), errors(**EIGHT)
    assert max(eight) < 0.012 < min(four)
    assert max(four) < min(fp4), "NF4 is made for normal weights"


def test_how_weights_are_computed_and_stored(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What each of the four parameters of 4-bit weights changes, and what it does not."""
    import torch

    plain = loaded(tiny_model, **FOUR)
    layer = plain.model.layers[0].mlp.up_proj
    assert (layer.compute_dtype, layer.weight.dtype) == (torch.float32, torch.uint8)
    state = layer.weight.quant_state
    assert (state.quant_type, state.nested, state.blocksize) == ("nf4", True, 64)
    expected = logits_of(plain)

    bf16 = loaded(tiny_model, **FOUR, bnb_4bit_compute_dtype="bfloat16")
    assert bf16.model.layers[0].mlp.up_proj.compute_dtype == torch.bfloat16
    assert 1e-4 < (logits_of(bf16) - expected).abs().max() < 0.1
    follows = loaded(tiny_model, **FOUR, torch_dtype="bfloat16")
    assert follows.model.layers[0].mlp.up_proj.compute_dtype == torch.bfloat16
    with caplog.at_level(logging.INFO):
        widened = loaded(tiny_model, **FOUR, bnb_4bit_compute_dtype="float16")
    assert widened.model.layers[0].mlp.up_proj.compute_dtype == torch.float32
    assert "14 4-bit layers are computed in float32, not float16: this is a CPU" in caplog.text
    assert torch.equal(logits_of(widened), expected)

    fp4 = loaded(tiny_model, **FOUR, bnb_4bit_quant_type="fp4")
    assert fp4.model.layers[0].mlp.up_proj.weight.quant_state.quant_type == "fp4"
    single = loaded(tiny_model, **FOUR, bnb_4bit_use_double_quant=False)
    assert not single.model.layers[0].mlp.up_proj.weight.quant_state.nested
    for other in (fp4, single):
        assert (logits_of(other) - expected).abs().max() > 1e-5

    for storage in ("int8", "float16", "bfloat16", "float32"):
        stored = loaded(tiny_model, **FOUR, bnb_4bit_quant_storage=storage)
        weight = stored.model.layers[0].mlp.up_proj.weight
        assert (str(weight.dtype), weight.numel() * weight.element_size()) == (f"torch.{storage}", 64 * 128 / 2)
        assert torch.equal(logits_of(stored), expected)


@pytest.mark.slow
def test_how_weights_are_stored_does_not_change_what_is_trained(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    made = []
    for storage in ("uint8", "bfloat16"):
        lab = Lab(tmp_path / storage, tiny_model, tokens)
        lab.run(PLAIN | FOUR | {"bnb_4bit_quant_storage": storage})
        made.append(digests(lab.out))
    assert made[0] == made[1]


@pytest.mark.slow
def test_training_goes_on_after_a_validation(tmp_path: Path, tiny_qwen2: Path) -> None:
    """Layers with a bias, whose 4-bit weights a validation would pack for some processors: as without one."""
    ids = [[7, 8, 9, 10, 11], [30, 31, 32], [5, 4, 3, 2, 1, 6]]
    made = []
    for validates in (False, True):
        folder = tmp_path / f"tokens-{validates}"
        write_tokens(folder)
        if validates:
            write_arrow(folder / "validation.arrow", {"input_ids": ids, "labels": ids})
        lab = Lab(tmp_path / str(validates), tiny_qwen2, folder)
        metrics = lab.run(PLAIN | FOUR | {"eval_strategy": "steps" if validates else "no", "eval_steps": 1})
        assert ("eval_loss" in metrics) is validates
        made.append(digests(lab.out))
    assert made[0] == made[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [FOUR, HQQ | {"quant_bits": 3, "use_dora": True}, FOUR | {"train_type": "adalora"}, EIGHT | LONG], ids=str
)
def test_resume(tmp_path: Path, tiny_qwen2: Path, tokens: Path, kind: dict[str, Any]) -> None:
    check_resume(tmp_path, tiny_qwen2, tokens, {"save_steps": 2} | kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [FOUR, HQQ | {"quant_bits": 2}], ids=str)
def test_the_adapter_is_merged_into_the_floats(lab: Lab, kind: dict[str, Any]) -> None:
    """The float base with the adapter, by peft; not what was rounded."""
    import torch
    from peft import PeftModel

    lab.run(PLAIN | kind)
    folder = lab.inputs["model"]
    on_floats = logits_of(PeftModel.from_pretrained(base_model(folder), lab.out))
    torch.testing.assert_close(logits_of(merged(lab, lab.out)), on_floats, atol=1e-4, rtol=0)
    rounded = logits_of(PeftModel.from_pretrained(by_the_libraries(folder, kind), lab.out))
    assert (rounded - on_floats).abs().max() > 1e-2


@pytest.mark.slow
def test_a_base_that_is_quantized_already(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    """By our own stage: the same losses as of one that is quantized on loading."""
    kind = FOUR
    stored = make_quantized(tmp_path, tiny_model, tokens, **kind)
    on_load, given = Lab(tmp_path / "a", tiny_model, tokens), Lab(tmp_path / "b", stored, tokens)
    on_load.run(PLAIN | kind)
    metrics = given.run(PLAIN)
    assert logged_losses(given) == logged_losses(on_load)
    assert digests(given.out) == digests(on_load.out)
    assert metrics["num_parameters"] - metrics["num_trainable_parameters"] == count_weights(base_model(tiny_model))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # GPTQModel, where it cleans up
def test_lora_beside_gptq(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    """On a CPU too; the losses are those of its weights, read as floats."""
    kind = {"quant_method": "gptq", "quant_bits": 4, "group_size": 32, "quant_seqlen": 16}
    lab = Lab(tmp_path, make_quantized(tmp_path, tiny_model, tokens, **kind), tokens)
    lab.run(PLAIN)
    losses = logged_losses(lab)
    assert losses[-1] < losses[0]
    floats = Lab(tmp_path / "floats", tiny_model, tokens)
    floats.run(PLAIN)
    assert losses == pytest.approx(logged_losses(floats), abs=0.1)
    assert losses != pytest.approx(logged_losses(floats), abs=1e-3)
    with pytest.raises(ModelError, match=r"`--train_type vera` does not go with a model that is quantized \(gptq\)"):
        lab.run(PLAIN | {"train_type": "vera"})


def make_quantized(folder: Path, model: Path, tokens: Path, **given: Any) -> Path:
    out, scratch = folder / "quantized", folder / "for-quantize"
    for each in (out, scratch):
        each.mkdir()
    quantize(QuantizeArguments(**given), {"model": model, "tokens": tokens}, out, Context(scratch, scratch))
    return out


def test_which_layers_are_quantized(tiny_model: Path, tiny_qwen2_vl: Path) -> None:
    """Not the head, and of a model that sees only the part that writes."""

    def planned(folder: Path) -> Any:
        arguments = TrainArguments(**FOUR)
        return plan_quantization(arguments, load_skeleton(folder), choose_precision(arguments, None))

    plan = planned(tiny_model)
    assert len(plan.layers) == 14
    assert plan.kept == ("lm_head",)
    plan = planned(tiny_qwen2_vl)
    assert plan.layers
    assert all("language_model." in path for path in plan.layers)
    assert any("visual." in path for path in plan.kept)
    assert "lm_head" in plan.kept


def test_what_stays_in_floats_can_be_trained_in_full(lab: Lab) -> None:
    metrics = lab.run(PLAIN | FOUR | {"modules_to_save": ["embed_tokens", "lm_head"], "max_steps": 1})
    adapter = 16384
    assert metrics["num_trainable_parameters"] == adapter + 2 * 384 * 64


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    (FOUR | {"modules_to_save": ["q_proj"]}, ArgumentsError, "`--modules_to_save q_proj` trains model.layers.0.self"),
    (
        FOUR | {"modules_to_save": ["mlp"]},
        ArgumentsError,
        "`--modules_to_save mlp` trains model.layers.0.mlp.",
    ),
    (
        HQQ | {"lora_bias_trainable": "all"},
        ArgumentsError,
        "`--lora_bias_trainable all` does not go with",
    ),
    (
        {"quant_method": "eetq", "quant_bits": 8},
        MissingPackage,
        "`--quant_method eetq` needs a CUDA device, and none is in use here; the package kernels (pip install "
        "kernels); the package eetq (pip install eetq). Without: `--quant_method bnb --quant_bits 8`",
    ),
]


@pytest.mark.parametrize(("given", "kind", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_refused(
    tmp_path: Path, tiny_qwen2: Path, tokens: Path, given: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """Before the weights, which are not there, are asked for."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_qwen2, folder)
    with pytest.raises(kind) as caught:
        Lab(tmp_path, folder, tokens).run(PLAIN | given)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("stored", "given", "message"),
    [
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            {"train_type": "full"},
            "`--train_type full` needs float",
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            {"train_type": "reft"},
            "give the float model that it w",
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, {"use_dora": True}, "it does with bnb 4, hqq"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            HQQ,
            "the model is quantized already (bitsandbytes): drop `--quant_method hqq`",
        ),
        (
            {"quant_method": "gptq", "bits": 4},
            {"train_type": "boft"},
            "is quantized (gptq), it does with bnb 4, bnb 8, hqq",
        ),
    ],
    ids=str,
)
def test_what_a_model_that_is_quantized_already_refuses(
    tmp_path: Path, tiny_model: Path, tokens: Path, stored: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": stored}
    (folder / "config.json").write_text(json.dumps(config))
    arguments = TrainArguments(**given)
    skeleton = load_skeleton(tiny_model)
    skeleton.config.quantization_config = stored
    with pytest.raises(ModelError) as caught:
        plan_quantization(arguments, skeleton, choose_precision(arguments, None))
    assert message in str(caught.value)


def test_hqq_takes_whole_groups(tmp_path: Path, tiny_model: Path) -> None:
    """5 x 64 weights of a layer are 5 groups, which cannot be packed by twos; with axis 0 they can."""
    import torch

    arguments = TrainArguments(**HQQ)
    skeleton = load_skeleton(tiny_model)
    skeleton.model.layers[1].mlp.up_proj = torch.nn.Linear(64, 5, device="meta")
    precision = choose_precision(arguments, None)
    with pytest.raises(ArgumentsError, match=r"takes 128 weights at a time, and model.layers.1.mlp.up_proj has 320"):
        plan_quantization(arguments, skeleton, precision)
    assert plan_quantization(TrainArguments(**HQQ, hqq_axis=0), skeleton, precision) is not None


@pytest.mark.parametrize(
    ("given", "libraries"),
    [
        ({}, []),
        (FOUR, ["bitsandbytes"]),
        (HQQ, ["hqq"]),
        ({"quant_method": "eetq", "quant_bits": 8}, ["eetq", "kernels"]),
        ({"train_type": "full", "use_galore": True}, []),
        ({"train_type": "full", "use_galore": True, "galore_quantization": True}, ["bitsandbytes"]),
        ({"optim": "paged_adamw_8bit"}, ["bitsandbytes"]),
        ({"optim": "adamw_torch"}, []),
    ],
    ids=str,
)
def test_the_key_holds_the_version_of_what_computes(given: dict[str, Any], libraries: list[str]) -> None:
    """Where it is used, and only there."""
    stage = get_stage("train")
    body = action_key(stage, TrainArguments(**given), {"model": "sha256:0"})[1]
    assert body["libraries"].keys() - {"torch", "transformers", "peft", "accelerate"} == set(libraries)
    assert {name: value for name, value in body["arguments"].items() if name.startswith("quant")} == {
        name: value for name, value in given.items() if name.startswith("quant")
    }
