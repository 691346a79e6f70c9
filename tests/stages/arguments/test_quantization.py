"""Which quantization of a base goes with what, by name."""

from __future__ import annotations

from typing import Any

import pytest

from stages.arguments import (
    ExportArguments,
    QuantizeArguments,
    SftArguments,
    SftThenExportArguments,
    TrainArguments,
)
from stages.arguments.base import Arguments
from stages.errors import ArgumentsError

FOUR = {"quant_method": "bnb", "quant_bits": 4}
EIGHT = {"quant_method": "bnb", "quant_bits": 8}
HQQ = {"quant_method": "hqq", "quant_bits": 3}
EETQ = {"quant_method": "eetq", "quant_bits": 8}
ROWS = {"model": "m", "dataset": ["d"]}


@pytest.mark.parametrize(
    "given",
    [
        *({"quant_method": "bnb", "quant_bits": bits} for bits in (4, 8)),
        *({"quant_method": "hqq", "quant_bits": bits, "hqq_axis": 0} for bits in (1, 2, 3, 4, 8)),
        EETQ,
    ],
    ids=str,
)
def test_what_there_is(given: dict[str, Any]) -> None:
    assert TrainArguments(**given).key_fields().items() >= given.items()


def test_the_axis_of_hqq_is_1_if_left_out() -> None:
    assert TrainArguments(**HQQ).key_fields()["hqq_axis"] == 1
    assert "hqq_axis" not in TrainArguments(**FOUR).key_fields()


WAYS: dict[str, dict[str, Any]] = {
    "lora": {},
    "longlora": {"train_type": "longlora"},
    "dora": {"use_dora": True},
    "dora of longlora": {"train_type": "longlora", "use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "adalora": {"train_type": "adalora"},
    "vera": {"train_type": "vera"},
    "boft": {"train_type": "boft"},
    "fourierft": {"train_type": "fourierft"},
    "adapter": {"train_type": "adapter"},
    "reft": {"train_type": "reft"},
    "llamapro": {"train_type": "llamapro"},
    "full": {"train_type": "full"},
    "galore": {"train_type": "full", "use_galore": True},
    "lisa": {"train_type": "full", "lisa_activated_layers": 1},
}
# What is trained, the base that it can be trained beside, the flag that is named where it cannot.
GO_TOGETHER: list[tuple[str, tuple[dict[str, Any], ...], str]] = [
    ("lora", (FOUR, EIGHT, HQQ, EETQ), ""),
    ("longlora", (FOUR, EIGHT, HQQ), "--train_type longlora"),
    ("dora", (FOUR, HQQ), "--use_dora true"),
    ("dora of longlora", (FOUR, HQQ), "--use_dora true"),
    ("pissa", (), "--init_lora_weights pissa"),
    ("adalora", (FOUR, EIGHT), "--train_type adalora"),
    ("vera", (FOUR, EIGHT, HQQ), "--train_type vera"),
    ("boft", (FOUR, EIGHT, HQQ), "--train_type boft"),
    ("fourierft", (FOUR, EIGHT), "--train_type fourierft"),
    ("adapter", (), "--train_type adapter"),
    ("reft", (), "--train_type reft"),
    ("llamapro", (), "--train_type llamapro"),
    ("full", (), "--train_type full"),
    ("galore", (), "--use_galore true"),
    ("lisa", (), "--lisa_activated_layers 1"),
]


@pytest.mark.parametrize(("way", "bases", "flag"), GO_TOGETHER)
def test_what_is_trained_beside_what(way: str, bases: tuple[dict[str, Any], ...], flag: str) -> None:
    assert {name for name, _, _ in GO_TOGETHER} == set(WAYS)
    for base in (FOUR, EIGHT, HQQ, EETQ):
        if base in bases:
            assert TrainArguments(**WAYS[way], **base).quant_method == base["quant_method"]
            continue
        with pytest.raises(ArgumentsError) as caught:
            TrainArguments(**WAYS[way], **base)
        for part in (f"`{flag}`", f"`--quant_method {base['quant_method']} --quant_bits {base['quant_bits']}`"):
            assert part in str(caught.value)


@pytest.mark.parametrize(
    ("model", "given", "line"),
    [
        (SftArguments, {"quant_bits": 4}, "`--quant_bits 4` needs `--quant_method`: choose from bnb, hqq, eetq"),
        (SftArguments, {"quant_method": "bnb"}, "`--quant_method bnb` needs `--quant_bits`: choose from 4, 8"),
        (
            SftArguments,
            {"quant_method": "hqq", "quant_bits": 4, "train_type": "fourierft"},
            "`--train_type fourierft` does not go with `--quant_method hqq --quant_bits 4`, it does with bnb 4, bnb 8: "
            "drop one of them",
        ),
        (
            SftArguments,
            FOUR | {"train_type": "full"},
            "`--train_type full` needs float weights and does not go with `--quant_method bnb --quant_bits 4`: "
            "drop one of them",
        ),
        *(
            (
                SftArguments,
                {"quant_method": method, "quant_bits": bits},
                f"`--quant_method {method}` cannot make `--quant_bits {bits}`: choose from {choices}",
            )
            for method, bits, choices in (("bnb", 3, "4, 8"), ("eetq", 4, "8"))
        ),
        (
            SftArguments,
            EIGHT | {"bnb_4bit_quant_type": "fp4"},
            "`--bnb_4bit_quant_type fp4` is a part of `--quant_method bnb --quant_bits 4`: add that, or drop it",
        ),
        (
            SftArguments,
            {"bnb_4bit_use_double_quant": False},
            "`--bnb_4bit_use_double_quant false` is a part of `--quant_method bnb --quant_bits 4`: add that, or drop "
            "it",
        ),
        (
            SftArguments,
            FOUR | {"hqq_axis": 0},
            "`--hqq_axis 0` is a part of `--quant_method hqq`: add that, or drop it",
        ),
        (
            SftThenExportArguments,
            {"load_quant_bits": 4},
            "`--load_quant_bits 4` needs `--load_quant_method`: choose from bnb, hqq, eetq",
        ),
        (
            SftThenExportArguments,
            {"load_quant_method": "hqq", "load_quant_bits": 2, "train_type": "full"},
            "`--train_type full` needs float weights and does not go with `--load_quant_method hqq "
            "--load_quant_bits 2`: drop one of them",
        ),
        (
            SftThenExportArguments,
            FOUR | {"load_bnb_4bit_quant_type": "fp4"},
            "`--load_bnb_4bit_quant_type fp4` is a part of `--load_quant_method bnb --load_quant_bits 4`: add that, "
            "or drop it",
        ),
        (
            ExportArguments,
            FOUR | {"hqq_axis": 0},
            "`--hqq_axis 0` is for training: export quantizes by bnb or gptq, drop it",
        ),
    ],
)
def test_what_does_not_go_together(model: type[Arguments], given: dict[str, Any], line: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        model(**({"model": "m"} if model is ExportArguments else ROWS), **given)
    assert str(caught.value) == line


def test_unsloth_quantizes_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.arguments.unsupported.UNSUPPORTED", {})
    with pytest.raises(ArgumentsError, match="`--tuner_backend unsloth` quantizes by bnb alone: drop it, or `--quant_"):
        SftArguments(**ROWS, **HQQ, tuner_backend="unsloth")


def test_a_flow_tells_the_base_from_the_result() -> None:
    """Training gets what begins with load_, quantize the rest; neither gets what is the other's."""
    both = {"quant_method": "gptq", "quant_bits": 2, "load_quant_method": "bnb", "load_quant_bits": 4}
    flow = SftThenExportArguments(**ROWS, **both, load_bnb_4bit_quant_type="fp4", torch_dtype="bfloat16")
    train, quantize = (flow.for_stage(stage).key_fields() for stage in (TrainArguments, QuantizeArguments))
    assert {name: value for name, value in train.items() if "quant" in name} == FOUR | {"bnb_4bit_quant_type": "fp4"}
    assert {name: value for name, value in quantize.items() if "quant" in name} == {
        "quant_method": "gptq",
        "quant_bits": 2,
    }
    flow = SftThenExportArguments(**ROWS, **EIGHT, load_quant_method="hqq", load_quant_bits=3, hqq_axis=0)
    train = flow.for_stage(TrainArguments).key_fields()
    assert {name: value for name, value in train.items() if "q" in name} == HQQ | {"hqq_axis": 0}
    only_result = SftThenExportArguments(**ROWS, **FOUR).for_stage(TrainArguments).key_fields()
    assert not [name for name in only_result if "quant" in name]
