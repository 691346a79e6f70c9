"""What needs GPUs or packages is refused in one line before anything is loaded; where they are, it is passed on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import TrainArguments
from stages.errors import ArgumentsError, MissingPackage
from stages.serving.loading import load_model
from stages.training import devices
from stages.training.devices import check_devices, check_layer_class, shards_weights
from stages.training.parallel import check_shared_rows, parallel_settings
from stages.training.precision import Precision
from stages.training.unsloth_backend import attach_adapter, load_with_unsloth
from tests.stages.training.lab import SHORT, Lab

NONE = "it needs a GPU, and this machine has none: "
MISSING: list[tuple[dict[str, Any], str]] = [
    ({"attn_impl": "flash_attn"}, f"`--attn_impl flash_attn` computes attention: {NONE}give `--attn_impl sdpa`"),
    ({"use_liger": True}, f"`--use_liger` computes layers and loss with Triton's kernels: {NONE}drop it"),
    ({"use_liger_kernel": True}, f"`--use_liger_kernel` computes layers and loss with Triton's kernels: {NONE}drop it"),
    ({"tuner_backend": "unsloth"}, f"`--tuner_backend unsloth` loads and trains the model: {NONE}drop it"),
    ({"deepspeed": "zero2"}, f"`--deepspeed` shares optimizer, gradients or weights: {NONE}drop it"),
    ({"fsdp": "full_shard"}, f"`--fsdp full_shard` shares the weights: {NONE}drop it"),
    (
        {"fsdp": "true", "nproc_per_node": 2},
        "`--fsdp true` shares the weights: it needs 2 GPUs, and this machine has none: drop it",
    ),
    (
        {"fsdp_num": 4, "model_layer_cls_name": "LlamaDecoderLayer"},
        "`--fsdp_num 4` shares the weights: it needs 4 GPUs, and this machine has none: drop it",
    ),
    ({"parallelism_config": {"tp_size": 2}}, f"`--parallelism_config` shares the weights: {NONE}drop it"),
]
CONFLICTS: list[tuple[dict[str, Any], str]] = [
    ({"deepspeed": "zero3", "fsdp": "true"}, "`--deepspeed` and FSDP share the weights in two ways: drop one of them"),
    (
        {"parallelism_config": {"tp_size": 2}, "fsdp_num": 2},
        "`--parallelism_config` and `--fsdp_num 2` both say who shares what: drop one of them",
    ),
    ({"fsdp_config": {"version": 2}}, "`--fsdp_config` settles FSDP, which is off: add `--fsdp true`"),
    (
        {"model_layer_cls_name": "LlamaDecoderLayer"},
        "`--model_layer_cls_name LlamaDecoderLayer` names the layers that GPUs share, and none are shared: add "
        "`--fsdp_num 2` or `--fsdp true`",
    ),
    (
        {"liger_kernel_config": {"rope": True}},
        "`--liger_kernel_config` settles Liger's kernels, which are off: add `--use_liger true`",
    ),
    (
        {"tuner_backend": "unsloth", "train_type": "vera"},
        "`--tuner_backend unsloth` trains lora and full, not vera: drop one of them",
    ),
    (
        {"train_type": "adalora", "deepspeed": "zero3"},
        "`--train_type adalora` needs whole weights in each process, and `--deepspeed` shares them: drop one",
    ),
    (
        {"train_type": "full", "lisa_activated_layers": 1, "fsdp": "true"},
        "`--lisa_activated_layers` needs whole weights in each process, and `--fsdp true` shares them: drop one",
    ),
    (
        {"attn_impl": "flash_attn", "torch_dtype": "float32"},
        "`--attn_impl flash_attn` computes in 16 bits: give `--torch_dtype bfloat16`, or `--attn_impl sdpa`",
    ),
]


@pytest.mark.parametrize(("given", "line"), [*MISSING, *CONFLICTS], ids=lambda value: str(value)[:40])
def test_what_is_refused(given: dict[str, Any], line: str) -> None:
    kind = MissingPackage if (given, line) in MISSING else ArgumentsError
    with pytest.raises(kind) as caught:
        check_devices(TrainArguments(**given))
    assert str(caught.value) == line


@pytest.mark.parametrize("given", [{}, {"fsdp": "false"}, {"nproc_per_node": 2}, {"attn_impl": "eager"}])
def test_what_asks_for_nothing(given: dict[str, Any]) -> None:
    check_devices(TrainArguments(**given))
    assert shards_weights(TrainArguments(**given)) is None


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"attn_impl": "flash_attn"}, "`pip install flash-attn --no-build-isolation`, or give `--attn_impl sdpa`"),
        ({"use_liger": True}, "by the package liger-kernel, which is not here: `pip install liger-kernel`, or drop it"),
        ({"tuner_backend": "unsloth"}, "by the package unsloth, which is not here: `pip install unsloth`, or drop it"),
        ({"deepspeed": "zero1"}, "by the package deepspeed, which is not here: `pip install deepspeed`, or drop it"),
    ],
)
def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], line: str) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage) as caught:
        check_devices(TrainArguments(**given))
    assert str(caught.value).endswith(line)
    monkeypatch.setattr(devices, "find_spec", lambda name: sys)
    check_devices(TrainArguments(**given))
    with pytest.raises(MissingPackage, match="needs a GPU, and the CPU is asked for: "):
        check_devices(TrainArguments(**given, use_cpu=True))


def test_flash_attention_is_refused_where_models_are_measured(tiny_model: Path) -> None:
    with pytest.raises(MissingPackage, match="`--attn_impl flash_attn` computes attention: it needs a GPU, and this "):
        load_model(tiny_model, attn_impl="flash_attn")


def test_it_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    lab = Lab(tmp_path, tmp_path / "no model", tmp_path / "no tokens")
    with pytest.raises(MissingPackage, match="`--deepspeed` shares optimizer"):
        lab.run(SHORT | {"deepspeed": "zero2"})


def test_what_transformers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parallel_settings(TrainArguments(use_liger=True)) == {"use_liger_kernel": True}
    monkeypatch.setenv("WORLD_SIZE", "4")
    own = {"ddp_find_unused_parameters": True, "ddp_broadcast_buffers": False}
    assert parallel_settings(TrainArguments()) == own
    assert parallel_settings(TrainArguments(ddp_find_unused_parameters=False)) == {"ddp_broadcast_buffers": False}
    told = parallel_settings(
        TrainArguments(fsdp="True", fsdp_config={"cpu_offload": True}, model_layer_cls_name="LlamaDecoderLayer")
    )
    layers = {"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}
    assert told == own | {"fsdp": True, "fsdp_config": {"cpu_offload": True, **layers}}
    assert parallel_settings(TrainArguments(fsdp="shard_grad_op offload"))["fsdp"] == "shard_grad_op offload"

    shared = parallel_settings(TrainArguments(fsdp_num=2))
    assert shared["fsdp"] is True
    assert (shared["parallelism_config"].dp_shard_size, shared["parallelism_config"].dp_replicate_size) == (2, 2)
    with pytest.raises(ArgumentsError, match="`--fsdp_num 3` needs a number of processes that it divides, and there a"):
        parallel_settings(TrainArguments(fsdp_num=3))
    assert parallel_settings(TrainArguments(parallelism_config={"tp_size": 4}))["parallelism_config"].tp_size == 4
    with pytest.raises(ArgumentsError, match=r"`--parallelism_config` knows no 'tensor'\. Choose from: cp_b"):
        parallel_settings(TrainArguments(parallelism_config={"tensor": 4}))


def test_liger_knows_no_weights() -> None:
    with pytest.raises(ArgumentsError, match="`--use_liger` computes the loss itself, and these rows were tokenized w"):
        check_shared_rows(TrainArguments(use_liger=True), packed=False, weighted=True)


def test_layers_are_named_by_their_class(tiny_model: Path) -> None:
    from stages.training.loading import load_skeleton

    skeleton = load_skeleton(tiny_model)
    check_layer_class(TrainArguments(model_layer_cls_name="LlamaDecoderLayer"), skeleton)
    with pytest.raises(ArgumentsError) as caught:
        check_layer_class(TrainArguments(model_layer_cls_name="QWenBlock"), skeleton)
    assert str(caught.value) == (
        "`--model_layer_cls_name QWenBlock`: the model has no such layer. Its layers are of the class LlamaDecoderLayer"
    )


@pytest.mark.parametrize(
    ("name", "stage", "optimizer", "weights"),
    [
        ("zero0", 0, None, None),
        ("zero1", 1, "none", None),
        ("zero2", 2, "none", None),
        ("zero2_offload", 2, "cpu", None),
        ("zero3", 3, "none", "none"),
        ("zero3_offload", 3, "cpu", "cpu"),
    ],
)
def test_names_of_deepspeeds_settings(name: str, stage: int, optimizer: str | None, weights: str | None) -> None:
    settings = TrainArguments(deepspeed=name).deepspeed
    assert settings is not None
    shared: Any = settings["zero_optimization"]
    assert shared["stage"] == stage
    assert shared.get("offload_optimizer", {}).get("device") == optimizer
    assert shared.get("offload_param", {}).get("device") == weights
    assert settings["train_batch_size"] == settings["gradient_clipping"] == "auto"
    assert shared.get("stage3_gather_16bit_weights_on_model_save", False) == (stage == 3)


def test_deepspeed_by_content(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text('{"zero_optimization": {"stage": 2}}')
    own = {"zero_optimization": {"stage": 2}}
    for given in (own, '{"zero_optimization": {"stage": 2}}', str(tmp_path / "own.json")):
        assert TrainArguments(deepspeed=given).deepspeed == own
        assert TrainArguments(deepspeed=given).key_fields()["deepspeed"] == own
    with pytest.raises(
        ArgumentsError, match="neither JSON nor the path of a JSON file, and none of zero0, zero1, zero"
    ):
        TrainArguments(deepspeed="zero5")


class FastLanguageModel:
    """What unsloth's class takes, with a plain model and plain LoRA behind it."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    def from_pretrained(self, model_name: str, dtype: Any, **given: Any) -> tuple[Any, None]:
        from transformers import AutoModelForCausalLM

        self.given = given
        return AutoModelForCausalLM.from_pretrained(model_name, dtype=dtype), None

    def get_peft_model(self, model: Any, use_gradient_checkpointing: bool, random_state: int, **given: Any) -> Any:
        from peft import LoraConfig, get_peft_model

        self.given = {"use_gradient_checkpointing": use_gradient_checkpointing, "random_state": random_state}
        return get_peft_model(model, LoraConfig(**given))


def test_what_unsloth_is_told(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    from types import SimpleNamespace

    from peft import LoraConfig

    unsloth = FastLanguageModel()
    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(FastLanguageModel=unsloth))
    arguments = TrainArguments(tuner_backend="unsloth", quant_bits=4, seed=7)
    model = load_with_unsloth(tiny_model, arguments, Precision(None, False, "bfloat16", "bf16"))
    assert str(model.dtype) == "torch.bfloat16"
    assert unsloth.given == {
        "max_seq_length": 256,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "full_finetuning": False,
        "local_files_only": True,
    }
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], use_rslora=True)
    tuned = attach_adapter(model, config, arguments)
    assert unsloth.given == {"use_gradient_checkpointing": True, "random_state": 7}
    ours = tuned.peft_config["default"]
    assert (ours.r, ours.lora_alpha, ours.use_rslora, ours.target_modules) == (3, 6, True, {"q_proj", "v_proj"})


@pytest.mark.parametrize(("warmup", "steps", "words"), [(0, 6, ""), (2, 4, ", the first 2 left out"),
                                                       (0.5, 3, ", the first 50% left out")])  # fmt: skip
def test_speed_leaves_the_first_steps_out(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    warmup: float,
    steps: int,
    words: str,
) -> None:
    """A clock that runs 10 s in each of the first two steps, and 2 s in the others."""
    from types import SimpleNamespace

    from stages.context import Context
    from stages.training import progress

    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    report = progress.RunReport(Context(tmp_path, tmp_path), warmup)
    settings = SimpleNamespace(train_batch_size=2, gradient_accumulation_steps=2, world_size=1, parallelism_config=None)
    state = SimpleNamespace(global_step=0, max_steps=6, is_world_process_zero=True, log_history=[])
    control = SimpleNamespace(should_save=False, should_evaluate=False, should_log=False)
    with caplog.at_level("INFO"):
        report.on_train_begin(settings, state, control)
        for step in range(1, 7):
            clock[0] += 10 if step <= 2 else 2
            state.global_step = step
            report.on_step_end(settings, state, control)
        report.on_train_end(settings, state, control)
    seconds = {6: (10 * 2 + 2 * 4) / 6, 4: 2.0, 3: 2.0}[steps]
    assert caplog.messages == [f"train: {seconds:.3g} s/step, {4 / seconds:.3g} rows/s over {steps} steps{words}"]
