"""One row over several devices: what is asked of the machine, and what transformers is told."""

from __future__ import annotations

import pytest

from stages.arguments import TrainArguments
from stages.errors import ArgumentsError, MissingPackage
from stages.training.parallel import check_parallel, check_shared_rows, parallel_settings


def test_one_device_asks_nothing() -> None:
    check_parallel(TrainArguments(use_cpu=True))
    assert parallel_settings(TrainArguments()) == {}


def test_devices_that_are_not_here() -> None:
    with pytest.raises(MissingPackage, match="`--sequence_parallel_size 4` shares each row among 4 GPUs, and this mac"):
        check_parallel(TrainArguments(sequence_parallel_size=4, use_cpu=True))


@pytest.mark.parametrize(("processes", "weights"), [("2", 1), ("6", 3)])
def test_what_transformers_is_told(processes: str, weights: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    told = parallel_settings(TrainArguments(sequence_parallel_size=2))
    shared = told["parallelism_config"]
    assert (shared.cp_size, shared.dp_shard_size, shared.total_size) == (2, weights, int(processes))
    assert told["fsdp"] is True


@pytest.mark.parametrize(("packed", "weighted", "flag"), [(True, False, "--packing"), (False, True, "--loss_scale")])
def test_rows_that_cannot_be_shared(packed: bool, weighted: bool, flag: str) -> None:
    check_shared_rows(TrainArguments(), packed=packed, weighted=weighted)
    check_shared_rows(TrainArguments(sequence_parallel_size=2), packed=False, weighted=False)
    with pytest.raises(ArgumentsError, match=f"tokenized with `{flag}`: drop one of them"):
        check_shared_rows(TrainArguments(sequence_parallel_size=2), packed=packed, weighted=weighted)
