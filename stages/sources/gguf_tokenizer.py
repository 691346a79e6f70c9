"""Turns the tokenizer inside of a GGUF file into tokenizer.json, tokenizer_config.json and chat_template.jinja.

`write_tokenizer(metadata, Path("smollm2"), context_length=8192)`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.errors import ModelError

__all__ = ["PRE_TOKENIZERS", "write_tokenizer"]

# How text is cut before byte-pair merges: GGUF's `tokenizer.ggml.pre` → the expression that the model was trained with.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
PRE_TOKENIZERS = {
    "smollm": "digits",
    "gpt-2": None,
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "qwen2": QWEN2,
}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def write_tokenizer(metadata: Mapping[str, Any], out: Path, *, context_length: int) -> None:
    """Writes the tokenizer's files into `out`.

    Raises:
        ModelError: the file has no tokenizer, or one whose cutting rule is not known (a guess would give wrong ids).
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    model = metadata.get("tokenizer.ggml.model")
    if not tokens or model not in ("gpt2", "llama"):
        raise ModelError(f"the GGUF has a tokenizer of kind {model!r}. Choose a file with one of: gpt2, llama")
    types = list(metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens))
    try:
        tokenizer = _byte_level(metadata, tokens) if model == "gpt2" else _sentence_piece(metadata, tokens, types)
    except ModelError:
        raise
    except Exception as error:  # the tokenizers library raises no narrower class
        raise ModelError(f"the GGUF's tokenizer does not fit together: {error}") from error
    _add_special(tokenizer, tokens, types)
    _add_begin_and_end(tokenizer, metadata, tokens)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        **_special_names(metadata, tokens),
    }
    (out / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    if template := metadata.get("tokenizer.chat_template"):
        (out / "chat_template.jinja").write_text(template, encoding="utf-8")


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise ModelError(
            f"the GGUF's tokenizer cuts text by the rule {pre!r}, which is not known. Choose from: {known}"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges") or []]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in ("llama-bpe", "llama3")))
    rule = PRE_TOKENIZERS[pre]
    if rule is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        first = (
            pre_tokenizers.Digits(individual_digits=True)
            if rule == "digits"
            else pre_tokenizers.Split(Regex(rule), behavior="isolated")
        )
        second = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule == "digits")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, second])
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Any:
    """Llama 2's kind: byte-pair merges are implied by the scores of the pieces, unknown characters fall to bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = {token: number for number, token in enumerate(tokens)}
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None:
        raise ModelError("the GGUF's tokenizer has no tokenizer.ggml.scores: it is incomplete")
    unknown = tokens[int(metadata.get("tokenizer.ggml.unknown_token_id", 0))]
    merges = _merges_from_scores(vocabulary, scores, types)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefixed = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    steps = [normalizers.Prepend("▁")] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tail = [decoders.Strip(" ", 1, 0)] if prefixed else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *tail])
    return tokenizer


def _merges_from_scores(
    vocabulary: Mapping[str, int], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """Every way to cut a piece into two pieces, best score first: the order in which SentencePiece would join them."""
    ranked = []
    for piece, number in vocabulary.items():
        if types[number] not in (NORMAL, USER_DEFINED):
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                ranked.append((-scores[number], vocabulary[left], vocabulary[right], left, right))
    ranked.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in ranked]


def _add_special(tokenizer: Any, tokens: Sequence[str], types: Sequence[int]) -> None:
    from tokenizers import AddedToken

    for token, kind in zip(tokens, types, strict=True):
        if kind in (UNKNOWN, CONTROL):
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=False)])


def _add_begin_and_end(tokenizer: Any, metadata: Mapping[str, Any], tokens: Sequence[str]) -> None:
    """Llama's kinds put the begin token before every text unless the file says that they do not."""
    from tokenizers import processors

    begins = metadata.get("tokenizer.ggml.model") == "llama" or metadata.get("tokenizer.ggml.pre") == "llama-bpe"
    begin = (
        metadata.get("tokenizer.ggml.bos_token_id") if metadata.get("tokenizer.ggml.add_bos_token", begins) else None
    )
    end = metadata.get("tokenizer.ggml.eos_token_id") if metadata.get("tokenizer.ggml.add_eos_token", False) else None
    special = {tokens[int(number)]: int(number) for number in (begin, end) if number is not None}
    head = [tokens[int(begin)]] if begin is not None else []
    tail = [tokens[int(end)]] if end is not None else []
    byte_level = metadata.get("tokenizer.ggml.model") == "gpt2"
    steps: list[Any] = [processors.ByteLevel(trim_offsets=False)] if byte_level else []
    if special:
        pair = [*head, "$A", *tail, *[f"{token}:1" for token in head], "$B:1", *[f"{token}:1" for token in tail]]
        steps.append(
            processors.TemplateProcessing(single=[*head, "$A", *tail], pair=pair, special_tokens=list(special.items()))
        )
    if steps:
        tokenizer.post_processor = processors.Sequence(steps) if len(steps) > 1 else steps[0]


def _special_names(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, str]:
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    found = {name: metadata.get(f"tokenizer.ggml.{short}_token_id") for short, name in names.items()}
    return {name: tokens[int(number)] for name, number in found.items() if number is not None}
