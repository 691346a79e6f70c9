"""What of training's parameters does not go together is one line with exit 2, word for word, before anything runs."""

from __future__ import annotations

import shlex

import pytest

from stages.arguments import SftArguments, TrainArguments
from stages.arguments.command_line import parse
from stages.arguments.conflicts import READERS
from stages.arguments.lora import TrainType
from stages.errors import ArgumentsError

REFUSED = [
    ("--warmup_ratio 3", "`--warmup_ratio 3` is a share of all steps: give one below 1, or `--warmup_steps`"),
    (
        "--warmup_ratio 0.1 --warmup_steps 5",
        "`--warmup_ratio 0.1` and `--warmup_steps 5` are one parameter: give it once",
    ),
    (
        "--init_weights gaussian --init_lora_weights pissa",
        "`--init_weights gaussian` and `--init_lora_weights pissa` are one parameter: give it once",
    ),
    (
        "--train_type full --lora_rank 16",
        "`--lora_rank 16` is for `--train_type lora` or `--train_type longlora`, and `--train_type full` has no such "
        "thing: drop one of them",
    ),
    (
        "--train_type full --target_modules q_proj v_proj",
        "`--target_modules q_proj v_proj` is for `--train_type lora` or `--train_type longlora` or `--train_type "
        "adalora`, among others, and `--train_type full` has no such thing: drop one of them",
    ),
    (
        "--train_type adalora --use_dora true",
        "`--use_dora true` is for `--train_type lora` or `--train_type longlora`, and `--train_type adalora` has no "
        "such thing: drop one of them",
    ),
    (
        "--vera_rank 4",
        "`--vera_rank 4` is for `--train_type vera`, and `--train_type lora` has no such thing: drop one of them",
    ),
    (
        "--train_type full --lisa_step_interval 5",
        "`--lisa_step_interval 5` is a part of LISA: add `--lisa_activated_layers`, such as 2",
    ),
    ("--lisa_activated_layers 2", "`--lisa_activated_layers` trains whole layers: add `--train_type full`"),
    ("--use_galore true", "`--use_galore` trains all weights: add `--train_type full`"),
    ("--train_type full --galore_rank 4", "`--galore_rank 4` is a part of GaLore: add `--use_galore true`"),
    ("--train_type full --use_galore true --optim sgd", "`--use_galore` works with AdamW: drop `--optim sgd`"),
    (
        "--gradient_checkpointing false --gradient_checkpointing_kwargs '{\"use_reentrant\": true}'",
        "`--gradient_checkpointing_kwargs` is about what `--gradient_checkpointing false` turns off: drop one of them",
    ),
    (
        "--use_cache true",
        "`--use_cache` keeps what `--gradient_checkpointing` computes again: drop it, or add "
        "`--gradient_checkpointing false`",
    ),
    (
        "--optim_target_modules q_proj",
        "`--optim_target_modules q_proj` is for optimizers in low rank, and `--optim adamw_torch_fused` is none: drop "
        "it (`--use_galore` has `--galore_target_modules`)",
    ),
    ("--optim_args foo", "--optim_args foo: write name=value, name=value"),
    ("--max_steps 0", "--max_steps 0: give at least 1, or -1 to leave it to `--num_train_epochs`"),
    (
        "--lr_scheduler_type cosine_with_min_lr",
        "`--lr_scheduler_type cosine_with_min_lr` needs min_lr or min_lr_rate in `--lr_scheduler_kwargs`: give "
        "'{\"min_lr\": 1e-6}'",
    ),
    (
        "--lr_scheduler_type warmup_stable_decay",
        "`--lr_scheduler_type warmup_stable_decay` needs num_decay_steps in `--lr_scheduler_kwargs`: give "
        "'{\"num_decay_steps\": 100}'",
    ),
    (
        '--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs \'{"min_lr": 1, "min_lr_rate": 0.1}\'',
        "`--lr_scheduler_kwargs`: min_lr and min_lr_rate are one setting: give one of them",
    ),
    (
        "--load_best_model_at_end true --save_strategy no",
        "`--load_best_model_at_end` chooses among checkpoints, and `--save_strategy no` writes none: drop one of them",
    ),
    (
        "--load_best_model_at_end true --save_steps 3 --eval_steps 2",
        "`--load_best_model_at_end` needs a validation at each checkpoint: make `--save_steps 3` a multiple of "
        "`--eval_steps 2`",
    ),
    (
        "--dataloader_prefetch_factor 2",
        "`--dataloader_prefetch_factor 2` is about processes that load batches: add `--dataloader_num_workers`, such "
        "as 2",
    ),
    (
        "--dataloader_persistent_workers true",
        "`--dataloader_persistent_workers true` is about processes that load batches: add `--dataloader_num_workers`, "
        "such as 2",
    ),
    (
        "--train_type adalora --max_steps 10 --adalora_tinit 8 --adalora_tfinal 2",
        "`--adalora_tinit 8` and `--adalora_tfinal 2` leave none of the run's 10 steps for ranks to fall in: lower one "
        "of them",
    ),
    ("--lora_dropout 1", "--lora_dropout 1 drops everything, and nothing is learnt: give a share below 1"),
    ("--eval_accumulation_steps 0", "--eval_accumulation_steps 0: must be at least 1"),
    (
        "--include_num_input_tokens_seen some",
        "--include_num_input_tokens_seen some: choose from no, all, non_padding",
    ),
    ("--label_names targets", "--label_names targets: rows have `labels`, always: drop it"),
    ("--length_column_name size", "--length_column_name size: rows have `length`, always: drop it"),
    (
        "--report_to none tensorboard",
        "`--report_to none tensorboard`: none goes with nothing else: drop it, or the others",
    ),
    (
        "--train_sampling_strategy group_by_length --streaming true --max_steps 5",
        "`--train_sampling_strategy group_by_length` needs every row's length, `--streaming` knows none: drop one of "
        "them",
    ),
    (
        "--streaming true --max_steps 5 --dataloader_num_workers 3",
        "`--streaming` is read by one process: give `--dataloader_num_workers 1` instead of 3, or 0",
    ),
    (
        "--packing true --lazy_tokenize true",
        "`--packing` needs every row's length, `--lazy_tokenize` knows none: drop one of them",
    ),
    ("--lora_rank 0", "--lora_rank 0: must be at least 1"),
    ("--lora_rank -4", "--lora_rank -4: must be at least 1"),
    ("--lora_rnk 4", "unknown option --lora_rnk. Did you mean --lora_rank?"),
    ("--lora_rank 3 --lora_rank 4", "--lora_rank is given twice: 3 and 4"),
]


@pytest.mark.parametrize(("flags", "line"), REFUSED, ids=[flags for flags, _ in REFUSED])
def test_refused(flags: str, line: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        parse(["--model", "m", "--dataset", "d", *shlex.split(flags)], SftArguments)
    assert str(caught.value) == line


TAKEN = (
    "--warmup_ratio 0.1",
    "--warmup_steps 30",
    "--train_type full --lora_rank 8",
    "--train_type full --lora_dropout 0",
    "--train_type adalora --lora_alpha 16 --target_modules q_proj",
    "--train_type boft --boft_block_num 2 --modules_to_save embed_tokens",
    "--train_type full --use_galore true --galore_rank 4",
    "--train_type full --lisa_activated_layers 1 --lisa_step_interval 3",
    "--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs '{\"min_lr\": 1e-6}'",
    "--load_best_model_at_end true --save_steps 4 --eval_steps 2",
    "--dataloader_num_workers 2 --dataloader_prefetch_factor 2",
    "--train_type adalora --max_steps 10 --adalora_tinit 4 --adalora_tfinal 2",
    "--gradient_checkpointing false --use_cache true",
    "--label_names labels --length_column_name length",
    "--report_to none",
)


@pytest.mark.parametrize("flags", TAKEN)
def test_taken(flags: str) -> None:
    """What is like it and means something; a default that is written out too."""
    parse(["--model", "m", "--dataset", "d", *shlex.split(flags)], SftArguments)


def test_every_parameter_in_the_table_is_there() -> None:
    assert READERS.keys() <= TrainArguments.model_fields.keys()
    assert {reader for readers in READERS.values() for reader in readers} < set(TrainType.__args__)
