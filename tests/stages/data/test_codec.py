"""Ids and places of tokens, by two ways that must agree."""

from __future__ import annotations

import json
import random
import string
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from stages.data.codec import PROBES, FastCodec, IdsDiffer, OpeningCodec, SlowCodec, open_codec

CORPUS = [
    "the quick brown fox jumps over it",
    "naïve café déjà vu",
    "你好 世界 今天",
    "0123456789 x = {'a': 1}",
    "  two\n\n\tthree ",
]


def byte_level(**changes: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if changes.get("normalizer"):
        tokenizer.normalizer = changes["normalizer"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 30, trainer)
    return tokenizer


def sentence_piece() -> Tokenizer:
    """Spaces are written as ▁, unknown characters as bytes: the kind that Llama 2 and Gemma have."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for piece in ["▁", *string.ascii_lowercase, "▁t", "th", "the", "▁th", "▁the"]:
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [("▁", "t"), ("t", "h"), ("th", "e"), ("▁t", "h"), ("▁th", "e")]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def texts(count: int) -> list[str]:
    """Words, scripts, marks and special tokens, thrown together."""
    draw = random.Random(5)
    pieces = [*PROBES, *CORPUS, "<|im_start|>", "<|im_end|>", "e\u0301", "\u212b", "가", "ᄀ", " ", "\n", "▁", "🏳️‍🌈"]
    return ["".join(draw.choices(pieces, k=draw.randint(0, 6))) for _ in range(count)]


@pytest.mark.parametrize(
    "tokenizer",
    [byte_level(), byte_level(normalizer=normalizers.NFC())],
    ids=["byte level", "byte level, NFC"],
)
def test_both_ways_give_the_same_ids_and_places(tokenizer: Tokenizer) -> None:
    fast = FastCodec(tokenizer)
    batch = texts(400)
    one, other = fast.encode(batch), SlowCodec(tokenizer).encode(batch)
    assert one.ids.tolist() == other.ids.tolist()
    assert one.offsets.tolist() == other.offsets.tolist()
    assert one.bases.tolist() == other.bases.tolist()
    wrong = [
        (text, a, b)
        for text, start, end in zip(batch, one.offsets[:-1], one.offsets[1:], strict=True)
        if (a := one.begins[start:end].tolist()) != (b := other.begins[start:end].tolist())
    ]
    assert wrong == []


def test_the_places_are_those_of_the_characters() -> None:
    tokenizer = byte_level()
    encoded = open_codec(tokenizer).encode(["ab", "", "é<|im_end|>x"])
    assert encoded.bases.tolist() == [0, 2, 2]
    last = encoded.ids[encoded.offsets[2] :].tolist()
    end = tokenizer.token_to_id("<|im_end|>")
    assert encoded.begins[encoded.offsets[2] + last.index(end)] == 2 + 1


def test_the_fast_way_is_taken_where_it_is_right() -> None:
    assert open_codec(byte_level()).name == OpeningCodec(byte_level()).name == "fastokens"


def test_a_tokenizer_that_it_does_not_take_is_left_to_the_slow_way() -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    codec = open_codec(words)
    assert codec.name == "tokenizers"
    assert codec.encode(["a b", "b"]).ids.tolist() == [1, 2, 2]


def test_a_tokenizer_for_which_it_gives_other_ids_too() -> None:
    codec = open_codec(sentence_piece())
    assert codec.name == "tokenizers"
    encoded = codec.encode(["the é"])
    assert [sentence_piece().id_to_token(number) for number in encoded.ids] == ["the", "▁", "<0xC3>", "<0xA9>"]
    assert encoded.begins.tolist() == [0, 3, 4, 4]


def test_it_steps_aside_when_one_id_differs() -> None:
    """The fast way is opened on one tokenizer and watched by another, which merges one pair less."""
    tokenizer = byte_level()
    codec = FastCodec(tokenizer)
    state = json.loads(tokenizer.to_str())
    state["model"]["merges"] = [merge for merge in state["model"]["merges"] if "".join(merge) != "Ġfox"]
    codec.safe = SlowCodec(Tokenizer.from_str(json.dumps(state)))
    codec.encode(["the quick"] * 3)
    with pytest.raises(IdsDiffer):
        codec.encode(["the quick brown fox"] * 200)
