"""`trainer.py` is what the installed transformers would make it, and together with SWIFT's fields it is complete."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import stages.arguments.trainer
from stages.arguments import SftArguments, TrainArguments
from stages.arguments.command_line import shape

pytestmark = pytest.mark.slow


def test_the_module_is_up_to_date() -> None:
    from stages.arguments.generate_trainer import generate

    formatted = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--stdin-filename", "stages/arguments/trainer.py", "-"],
        input=generate(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert formatted == Path(stages.arguments.trainer.__file__).read_text(encoding="utf-8")


def test_every_argument_of_transformers_is_taken() -> None:
    from transformers import Seq2SeqTrainingArguments

    known = {*SftArguments.model_fields, *SftArguments.aliases()}
    assert {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)} <= known


def test_schedulers_are_those_of_transformers() -> None:
    from transformers.trainer_utils import SchedulerType

    assert list(get_args(TrainArguments.model_fields["lr_scheduler_type"].annotation)) == [
        item.value for item in SchedulerType
    ]


def test_reporters_are_those_of_transformers() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    known = set(shape(TrainArguments.model_fields["report_to"].rebuild_annotation()).choices)
    assert known == {*INTEGRATION_TO_CALLBACK, "all", "none"}
