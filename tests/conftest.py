"""What tests of several rooms need: a store of their own, a tiny real model, a few real rows."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.training.cores import share_cores

share_cores()  # before any test imports torch
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    # As in a shell's background job: a worker that tests start would ignore it too, and never end.
    signal.signal(signal.SIGINT, signal.default_int_handler)

TEXT = "the a capital of France Paris is what answer question hello world one two three red green blue sky sea sum"
WORDS = TEXT.split()
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the store of the user who runs it."""
    store = tmp_path_factory.mktemp("store")
    monkeypatch.setenv("MARTLET_STORE", str(store))
    return store


def write_tiny_model(folder: Path) -> Path:
    """A random two-layer Llama, a trained byte-level BPE tokenizer and a ChatML template, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        bos_token_id=fast.bos_token_id,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`write_tiny_model`, once a session; read it, do not change it."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


def alpaca_rows(count: int) -> list[dict[str, str]]:
    """Rows that differ and can be learnt."""
    rows = []
    for number in range(count):
        a, b = WORDS[number % len(WORDS)], WORDS[(number * 7 + 3) % len(WORDS)]
        rows.append({"instruction": f"what is the sum of {a} and {b}?", "input": "", "output": f"the sum is {a} {b}."})
    return rows


@pytest.fixture
def alpaca_file(tmp_path: Path) -> Path:
    """Forty alpaca rows as JSON lines."""
    path = tmp_path / "alpaca.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in alpaca_rows(40)))
    return path


@pytest.fixture
def in_tmp_path(tmp_path: Path) -> Iterator[Path]:
    """The test's own folder as the working folder, so that `output/` lands there."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)
