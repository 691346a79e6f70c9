"""What is left for us to decide is decided, and what cannot go together is refused naming both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import (
    DownloadArguments,
    EvalArguments,
    EvaluateArguments,
    ExportArguments,
    InferArguments,
    MergeArguments,
    PreprocessArguments,
    PtArguments,
    PushToHubArguments,
    QuantizeArguments,
    RLHFArguments,
    SftArguments,
    SftThenExportArguments,
    TokenizeArguments,
    TrainArguments,
    unsupported,
)
from stages.arguments.base import Arguments
from stages.arguments.merge import shard_bytes
from stages.errors import ArgumentsError

REQUIRED: dict[type[Arguments], dict[str, Any]] = {
    SftArguments: {"model": "m", "dataset": ["d"]},
    PtArguments: {"model": "m", "dataset": ["d"]},
    RLHFArguments: {"model": "m", "dataset": ["d"]},
    SftThenExportArguments: {"model": "m", "dataset": ["d"]},
    DownloadArguments: {"model": "m"},
    InferArguments: {"model": "m"},
    EvalArguments: {"model": "m"},
    ExportArguments: {"model": "m", "quant_method": "bnb", "quant_bits": 4},
}


@pytest.mark.parametrize(
    ("model", "given", "settled"),
    [
        (SftArguments, {}, {"learning_rate": 1e-4, "eval_strategy": "steps", "eval_steps": 500.0}),
        (SftArguments, {"train_type": "full"}, {"learning_rate": 1e-5}),
        (SftArguments, {"train_type": "full", "learning_rate": 3e-4}, {"learning_rate": 3e-4}),
        (SftArguments, {"save_strategy": "epoch"}, {"eval_strategy": "epoch"}),
        (SftArguments, {"save_strategy": "no"}, {"eval_strategy": "no", "split_dataset_ratio": 0.01}),
        (SftArguments, {"save_steps": 20}, {"eval_steps": 20.0}),
        (SftArguments, {"save_steps": 20, "eval_steps": 5}, {"eval_steps": 5.0}),
        (SftArguments, {"eval_strategy": "no"}, {"split_dataset_ratio": 0.0}),
        (SftArguments, {"val_dataset": ["v"]}, {"split_dataset_ratio": 0.0}),
        (SftArguments, {"dataset": "d"}, {"dataset": ["d"]}),
        (SftThenExportArguments, {"eval_strategy": "no"}, {"split_dataset_ratio": 0.01}),
        (SftThenExportArguments, {"init_lora_weights": False}, {"init_lora_weights": "false"}),
        (SftThenExportArguments, {}, {"merge_lora": True, "temperature": 0.0, "max_new_tokens": 64}),
        (PtArguments, {}, {"use_chat_template": False, "loss_scale": "all"}),
        (RLHFArguments, {}, {"beta": 0.1, "loss_type": "sigmoid", "loss_scale": "last_round", "ref_model": None}),
        (RLHFArguments, {"rlhf_type": "simpo"}, {"beta": 2.0, "loss_type": "simpo"}),
        (RLHFArguments, {"rlhf_type": "orpo"}, {"beta": 0.1, "loss_type": None, "loss_scale": "default"}),
        (RLHFArguments, {"train_type": "full"}, {"ref_model": "m"}),
        (RLHFArguments, {"train_type": "full", "rlhf_type": "cpo"}, {"ref_model": None}),
        (InferArguments, {"num_beams": 2, "stream": True}, {"stream": False}),
        (EvalArguments, {}, {"temperature": 0.0, "verbose": False, "max_batch_size": None}),
        (ExportArguments, {"max_length": 512}, {"quant_seqlen": 512}),
        (ExportArguments, {"max_length": 512, "quant_seqlen": 512}, {"quant_seqlen": 512}),
    ],
)
def test_settled(model: type[Arguments], given: dict[str, Any], settled: dict[str, Any]) -> None:
    arguments = model(**(REQUIRED[model] | given))
    assert {name: getattr(arguments, name) for name in settled} == settled


@pytest.mark.parametrize(
    ("model", "given", "names"),
    [
        (
            SftArguments,
            {"template": "chatml", "use_chat_template": False},
            ["--template chatml", "--use_chat_template false"],
        ),
        (
            SftArguments,
            {"template": "chatml", "template_backend": "jinja"},
            ["--template chatml", "--template_backend jinja"],
        ),
        (SftArguments, {"val_dataset": ["v"], "split_dataset_ratio": 0.1}, ["--val_dataset", "--split_dataset_ratio"]),
        (SftArguments, {"resume_only_model": True}, ["--resume_only_model", "--resume_from_checkpoint"]),
        (SftArguments, {"fp16": True, "bf16": True}, ["--fp16", "--bf16"]),
        (SftArguments, {"save_steps": 2.5}, ["--save_steps 2.5"]),
        (
            SftArguments,
            {"load_best_model_at_end": True, "eval_strategy": "epoch"},
            ["--load_best_model_at_end", "--eval_strategy epoch", "--save_strategy steps"],
        ),
        (SftArguments, {"save_strategy": "best"}, ["--save_strategy best", "--metric_for_best_model"]),
        (SftThenExportArguments, {"merge_lora": False}, ["--merge_lora false", "martlet sft"]),
        (
            SftThenExportArguments,
            {"train_type": "adapter"},
            ["--train_type adapter", "cannot be folded", "martlet sft"],
        ),
        (SftThenExportArguments, {"train_type": "reft"}, ["--train_type reft", "cannot be folded", "martlet sft"]),
        (SftThenExportArguments, {"quant_bits": 4}, ["--quant_bits 4", "--quant_method", "bnb, gptq, awq"]),
        (SftThenExportArguments, {"quant_method": "gptq"}, ["--quant_method gptq", "--quant_bits", "2, 3, 4, 8"]),
        (SftThenExportArguments, {"quant_method": "bnb", "quant_bits": 3}, ["--quant_bits 3", "4, 8"]),
        (SftThenExportArguments, {"push_to_hub": True}, ["--push_to_hub", "--hub_model_id"]),
        (RLHFArguments, {"rlhf_type": "kto"}, ["--rlhf_type kto", "--per_device_train_batch_size"]),
        (
            RLHFArguments,
            {"rlhf_type": "kto", "per_device_train_batch_size": 2, "label_smoothing": 0.1},
            ["--label_smoothing", "--rlhf_type kto"],
        ),
        (RLHFArguments, {"ref_model": "r"}, ["--ref_model", "--train_type"]),
        (RLHFArguments, {"ref_model": "r", "train_type": "full", "rlhf_type": "orpo"}, ["--ref_model", "orpo"]),
        (
            InferArguments,
            {"merge_lora": True, "quant_method": "bnb", "quant_bits": 4},
            ["--merge_lora", "--quant_method"],
        ),
        (InferArguments, {"num_beams": 2, "infer_backend": "vllm"}, ["--num_beams", "--infer_backend"]),
        (EvalArguments, {"eval_url": "http://host/v1"}, ["--eval_url", "--api_key"]),
        (EvalArguments, {"ssl_keyfile": "k"}, ["--ssl_keyfile", "--ssl_certfile"]),
        (ExportArguments, {"max_length": 512, "quant_seqlen": 1024}, ["--max_length 512", "--quant_seqlen 1024"]),
        (ExportArguments, {"quant_method": "gptq"}, ["--quant_method gptq", "--dataset"]),
        (ExportArguments, {"merge_lora": True}, ["--merge_lora", "--ckpt_dir"]),
        (
            ExportArguments,
            {"quant_method": None, "quant_bits": None},
            ["--merge_lora", "--quant_method", "--push_to_hub"],
        ),
        (ExportArguments, {"adapters": ["a", "b"]}, ["--adapters", "2"]),
        (ExportArguments, {"model": ""}, ["--model", "--ckpt_dir"]),
    ],
)
def test_conflicts_name_both(model: type[Arguments], given: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ArgumentsError) as caught:
        model(**(REQUIRED[model] | given))
    line = str(caught.value)
    assert "\n" not in line
    assert [name for name in names if name not in line] == [], line


@pytest.mark.parametrize(
    ("model", "given", "names"),
    [
        (SftArguments, {"packing": True, "lazy_tokenize": True}, ["--packing", "--lazy_tokenize"]),
        (SftArguments, {"streaming": True}, ["--streaming", "--max_steps"]),
        (SftArguments, {"streaming": True, "max_steps": 9, "lazy_tokenize": True}, ["--streaming", "--lazy_tokenize"]),
        (SftArguments, {"rope_scaling": "linear"}, ["--rope_scaling", "--max_length"]),
        (SftArguments, {"loss_scale": "last_round+reackt"}, ["--loss_scale last_round+reackt", "'reackt'", "react"]),
        (DownloadArguments, {"rope_scaling": "linear"}, ["--rope_scaling", "--max_length"]),
        (SftArguments, {"use_liger": True, "loss_scale": "react"}, ["--use_liger", "--loss_scale"]),
        (SftArguments, {"use_galore": True}, ["--use_galore", "--train_type full"]),
        (
            SftArguments,
            {"galore_optim_per_parameter": True, "galore_quantization": True},
            ["--galore_optim_per_parameter", "--galore_quantization"],
        ),
        (SftArguments, {"lisa_activated_layers": 2}, ["--lisa_activated_layers", "--train_type full"]),
        (SftArguments, {"lorap_lr_ratio": 16, "train_type": "full"}, ["--lorap_lr_ratio", "--train_type"]),
        (SftArguments, {"boft_block_size": 8, "boft_block_num": 2}, ["--boft_block_size", "--boft_block_num"]),
        (SftArguments, {"adalora_target_r": 12}, ["--adalora_target_r 12", "--adalora_init_r 12"]),
        (
            SftArguments,
            {"llamapro_num_new_blocks": 4, "llamapro_num_groups": 3},
            ["--llamapro_num_new_blocks 4", "--llamapro_num_groups 3"],
        ),
        (SftArguments, {"deepspeed": {"zero": 1}, "device_map": "auto"}, ["--deepspeed", "--device_map"]),
        (
            SftArguments,
            {"quant_method": "bnb", "quant_bits": 4, "train_type": "full"},
            ["--quant_method", "--train_type full"],
        ),
        (SftArguments, {"quant_method": "eetq", "quant_bits": 4}, ["--quant_method eetq", "--quant_bits 4"]),
    ],
)
def test_conflicts_that_wait_behind_what_is_not_supported_yet(
    model: type[Arguments], given: dict[str, Any], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsupported, "UNSUPPORTED", {})
    test_conflicts_name_both(model, given, names)


def test_only_the_number_of_boft_blocks_unsets_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsupported, "UNSUPPORTED", {})
    assert TrainArguments(train_type="boft", boft_block_num=8).boft_block_size == 0


def test_unsloth_takes_quant_bits_alone_for_bnb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsupported, "UNSUPPORTED", {})
    arguments = SftArguments(model="m", dataset=["d"], tuner_backend="unsloth", quant_bits=4)
    assert arguments.quant_method == "bnb"


@pytest.mark.parametrize(
    ("size", "expected"),
    [("5GB", 5 * 10**9), ("5GiB", 5 * 2**30), ("200 mb", 2 * 10**8), ("1.5kib", 1536), ("1000", 1000), ("7b", 7)],
)
def test_shard_bytes(size: str, expected: int) -> None:
    assert shard_bytes(size) == expected


@pytest.mark.parametrize("size", ["", "GB", "0GB", "-5GB", "5XB", "five", "5iB"])
def test_shard_bytes_refuses(size: str) -> None:
    with pytest.raises(ValueError, match="give a size such as 5GB"):
        shard_bytes(size)


STAGES = (
    DownloadArguments,
    PreprocessArguments,
    TokenizeArguments,
    TrainArguments,
    MergeArguments,
    QuantizeArguments,
    EvaluateArguments,
    PushToHubArguments,
)


def test_a_command_gives_each_stage_its_part() -> None:
    arguments = SftThenExportArguments(
        model="m",
        dataset=["d#5"],
        lora_rank=16,
        max_length=128,
        quant_method="gptq",
        quant_bits=4,
        eval_limit=3,
        max_new_tokens=8,
        push_to_hub=True,
        hub_model_id="group/name",
        output_dir="elsewhere",
        logging_steps=1,
    )
    keys = {stage.NAME: arguments.for_stage(stage).key_fields() for stage in STAGES}
    assert keys == {
        "download": {"model": "m"},
        "preprocess": {"dataset": ["d#5"]},
        "tokenize": {"max_length": 128},
        "train": {"lora_rank": 16, "learning_rate": 1e-4, "eval_strategy": "steps", "eval_steps": 500.0},
        "merge": {},
        "quantize": {"quant_method": "gptq", "quant_bits": 4},
        "evaluate": {"eval_limit": 3, "max_new_tokens": 8},
        "push_to_hub": {"hub_model_id": "group/name"},
    }


def test_changes_are_laid_on_top_and_checked() -> None:
    arguments = SftArguments(model="m", dataset=["d"])
    assert arguments.for_stage(DownloadArguments, model_revision="abc").model_revision == "abc"
    with pytest.raises(ArgumentsError, match="unknown option --revision"):
        arguments.for_stage(DownloadArguments, revision="abc")


@pytest.mark.parametrize("given", [{}, {"train_type": "full"}, {"val_dataset": ["v"]}, {"save_steps": 7}])
def test_making_arguments_anew_from_their_record_changes_nothing(given: dict[str, Any]) -> None:
    arguments = SftThenExportArguments(model="m", dataset=["d"], **given)
    assert SftThenExportArguments(**arguments.model_dump(mode="json", exclude_defaults=True)) == arguments
    for stage in STAGES[:5]:
        part = arguments.for_stage(stage)
        assert stage(**json.loads(json.dumps(part.model_dump(mode="json")))) == part


def test_arguments_cannot_be_changed() -> None:
    arguments = TrainArguments()
    with pytest.raises(ValueError, match="frozen"):
        arguments.lora_rank = 9  # type: ignore[misc]


def test_quantize_and_push_to_hub_by_themselves_say_what_they_need() -> None:
    with pytest.raises(ArgumentsError, match="--quant_method"):
        QuantizeArguments()
    with pytest.raises(ArgumentsError, match="--hub_model_id"):
        PushToHubArguments()


def adapter_folder(folder: Path, base: str = "", saved: dict[str, Any] | None = None) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    if saved is not None:
        (folder / "args.json").write_text(json.dumps(saved))
    return folder


def test_a_checkpoint_knows_its_model(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "checkpoint-2", saved={"model": "org/base", "use_hf": True, "system": "s"})
    arguments = ExportArguments(ckpt_dir=str(folder), merge_lora=True)
    assert (arguments.model, arguments.adapters) == ("org/base", [str(folder)])
    assert (arguments.use_hf, arguments.system) == (True, "s")
    assert ExportArguments(ckpt_dir=str(folder), merge_lora=True, system="t").system == "t"
    assert ExportArguments(ckpt_dir=str(folder), merge_lora=True, model="other").model == "other"
    again = ExportArguments(**arguments.model_dump(mode="json", exclude_defaults=True))
    assert again == arguments


def test_the_run_s_record_serves_its_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "args.json").write_text(json.dumps({"model": "org/base"}))
    folder = adapter_folder(tmp_path / "checkpoint-2")
    assert ExportArguments(ckpt_dir=str(folder), merge_lora=True).model == "org/base"


def test_a_checkpoint_without_record_names_its_model_in_the_adapter(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "checkpoint-2", base="org/base")
    assert ExportArguments(ckpt_dir=str(folder), merge_lora=True).model == "org/base"


def test_a_whole_model_as_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    arguments = ExportArguments(ckpt_dir=str(tmp_path), quant_method="bnb", quant_bits=8)
    assert (arguments.model, arguments.adapters) == (str(tmp_path), [])
    with pytest.raises(ArgumentsError, match="drop `--model other`"):
        ExportArguments(ckpt_dir=str(tmp_path), model="other", quant_method="bnb", quant_bits=8)
    with pytest.raises(ArgumentsError, match="`--merge_lora` needs an adapter"):
        ExportArguments(ckpt_dir=str(tmp_path), merge_lora=True)


def test_bad_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ArgumentsError, match="is not a folder"):
        ExportArguments(ckpt_dir=str(tmp_path / "none"), merge_lora=True)
    with pytest.raises(ArgumentsError, match=r"neither adapter_config\.json nor config\.json"):
        ExportArguments(ckpt_dir=str(tmp_path), merge_lora=True)
    folder = adapter_folder(tmp_path / "a")
    with pytest.raises(ArgumentsError, match="add `--model`"):
        ExportArguments(ckpt_dir=str(folder), merge_lora=True)
    (folder / "args.json").write_text("{")
    with pytest.raises(ArgumentsError, match="is not JSON"):
        ExportArguments(ckpt_dir=str(folder), merge_lora=True)
