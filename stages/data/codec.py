"""Turns texts into token ids, and says which token begins where: `open_codec(model.tokenizer).encode(texts)`.

Two ways lead to the same ids: Hugging Face's tokenizers, and fastokens, several times as fast. The fast one is used
where its ids were found to be equal for this very tokenizer, on probes first and on a sample of the rows all along.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    Ints = NDArray[np.int64]

__all__ = ["Codec", "Encoded", "FastCodec", "IdsDiffer", "OpeningCodec", "SlowCodec", "open_codec"]

SAMPLED = 64
"""One text in so many is encoded both ways."""

PROBES = (
    "",
    " ",
    "\n\n \t\n  x\r\n",
    "The quick brown fox's 12,345.67 jumps — don't they're WE'LL I'd",
    "  leading and trailing  ",
    "你好，世界！今天是2024年。",
    "日本語のテキスト、カタカナ ひらがな",
    "안녕하세요 세계 देवनागरी ไทย العربية עברית",
    "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈 and flags 🇩🇪",
    "def f(x):\n\treturn {'a': [1, 2.5e-3], \"b\": None}  # ok\n\n\n",
    "naïve café ﬁ Å Ω é é İıſß",
    "\u00a0\u2003\u200b\ufeff\u3000|\x00\x01\x7f",
    "https://example.org/a?b=c&d=%20#e user@example.org",
    "1234567890" * 20,
    "a" * 500 + " " * 100 + "\n" * 50,
    "<|im_start|>user\nhi<|im_end|>\n<s>[INST] x [/INST]</s> <|eot_id|> <tool_call>",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ḱ̷̨ͅ ﷽ ︎",
)


class IdsDiffer(Exception):
    """The fast tokenizer has given other ids than Hugging Face's: everything must be encoded anew by the latter."""


@dataclass(frozen=True)
class Encoded:
    """Texts as token ids, laid end to end.

    Attributes:
        ids: int32, of all texts.
        offsets: int64, [texts + 1]: where each text begins, and, last, where the last one ends.
        begins: int64, of each token: the character of its text, counted on over all texts, in which it begins.
        bases: int64, [texts]: the count of characters before each text.
    """

    ids: NDArray[np.int32]
    offsets: Ints
    begins: Ints
    bases: Ints


class Codec(Protocol):
    """Encodes; safe to call from several threads."""

    @property
    def name(self) -> str:
        """The library that encodes."""

    @property
    def safe(self) -> Codec:
        """One that is never wrong."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        """The texts' tokens.

        Raises:
            IdsDiffer: the codec has found itself to be wrong.
        """


class SlowCodec:
    """Hugging Face's tokenizers."""

    name = "tokenizers"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @property
    def safe(self) -> Codec:
        """See `Codec`."""
        return self

    def encode(self, texts: Sequence[str]) -> Encoded:
        """See `Codec`."""
        import numpy as np

        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        lengths = np.array([len(encoding.ids) for encoding in encodings], dtype=np.int64)
        bases = _starts([len(text) for text in texts])[:-1]
        ids = np.array([token for encoding in encodings for token in encoding.ids], dtype=np.int32)
        begins = np.array([begin for encoding in encodings for begin, _ in encoding.offsets], dtype=np.int64)
        return Encoded(ids, _starts(lengths), begins + np.repeat(bases, lengths), bases)


class FastCodec:
    """fastokens, watched by Hugging Face's tokenizers.

    It gives no positions. They follow from the bytes that each token stands for, wherever these add up to the text's.
    """

    name = "fastokens"

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Tries it out.

        Raises:
            IdsDiffer: fastokens does not take this tokenizer, or gives other ids on some probe.
        """
        from fastokens import Tokenizer as Fast

        self.safe = SlowCodec(tokenizer)
        description = tokenizer.to_str()
        try:
            self._fast = Fast.from_json_str(description)
        except Exception as error:  # the library raises no narrower class
            raise IdsDiffer(f"fastokens does not take it: {error}") from error
        state = json.loads(description)
        self._normalizes = state.get("normalizer") is not None
        self._widths = _byte_widths(tokenizer, byte_level="ByteLevel" in json.dumps(state.get("decoder")))
        self._num_texts = 0
        added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        probes = [*PROBES, *(f"x {token} y\n{token}{token}" for token in added[:200])]
        self._compare(probes, self._fast_ids(probes))

    def encode(self, texts: Sequence[str]) -> Encoded:
        """See `Codec`."""
        import numpy as np

        ids, offsets = self._fast_ids(texts)
        self._watch(texts, ids, offsets)
        sizes = [len(text) if text.isascii() else len(text.encode()) for text in texts]
        ends = np.cumsum(self._widths[ids])
        per_text = np.diff(np.concatenate([[0], ends])[offsets])
        wrong = np.flatnonzero(per_text != np.array(sizes, dtype=np.int64))
        rewritten = [
            index
            for index, text in enumerate(texts)
            if self._normalizes and not text.isascii() and not unicodedata.is_normalized("NFC", text)
        ]
        if len(wrong) or rewritten:
            return self._partly_slow(texts, sorted({*wrong.tolist(), *rewritten}))
        begins = ends - self._widths[ids]
        bases = _starts(sizes)[:-1]
        if any(size != len(text) for size, text in zip(sizes, texts, strict=True)):
            begins, bases = _characters(texts, begins, offsets, bases)
        return Encoded(ids, offsets, begins, bases)

    def _fast_ids(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], Ints]:
        import numpy as np

        ids, offsets = self._fast.encode_batch_flat(list(texts), add_special_tokens=False)
        return np.frombuffer(ids, np.uint32).view(np.int32), np.frombuffer(offsets, np.uint64).astype(np.int64)

    def _watch(self, texts: Sequence[str], ids: NDArray[np.int32], offsets: Ints) -> None:
        """Encodes one text in `SAMPLED` both ways."""
        first = -self._num_texts % SAMPLED
        self._num_texts += len(texts)
        for index in range(first, len(texts), SAMPLED):
            part = ids[offsets[index] : offsets[index + 1]]
            self._compare([texts[index]], (part, offsets[index : index + 2] - offsets[index]))

    def _compare(self, texts: Sequence[str], fast: tuple[NDArray[np.int32], Ints]) -> None:
        import numpy as np

        slow = self.safe.encode(texts)
        if not (np.array_equal(slow.ids, fast[0]) and np.array_equal(slow.offsets, fast[1])):
            raise IdsDiffer("fastokens gives other ids than tokenizers")

    def _partly_slow(self, texts: Sequence[str], wrong: Sequence[int]) -> Encoded:
        """Some texts are rewritten before they are encoded (Unicode's normal form …): there the bytes say nothing."""
        import numpy as np

        pieces, start = [], 0
        for index in [*wrong, len(texts)]:
            if index > start:
                pieces.append(self.encode(texts[start:index]))
            if index < len(texts):
                pieces.append(self.safe.encode(texts[index : index + 1]))
            start = index + 1
        characters = _starts([sum(map(len, group)) for group in _groups(texts, wrong)])
        return Encoded(
            np.concatenate([piece.ids for piece in pieces]),
            _starts(np.concatenate([np.diff(piece.offsets) for piece in pieces])),
            np.concatenate([piece.begins + base for piece, base in zip(pieces, characters, strict=False)]),
            np.concatenate([piece.bases + base for piece, base in zip(pieces, characters, strict=False)]),
        )


def open_codec(tokenizer: Tokenizer) -> Codec:
    """The faster of the two that gives the right ids."""
    try:
        return FastCodec(tokenizer)
    except (ImportError, IdsDiffer):
        return SlowCodec(tokenizer)


class OpeningCodec:
    """What `open_codec` gives; it is opened beside other work, which takes some tenths of a second."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        pool = ThreadPoolExecutor(1, thread_name_prefix="open-codec")
        self._opened = pool.submit(open_codec, tokenizer)
        pool.shutdown(wait=False)

    @property
    def name(self) -> str:
        """See `Codec`."""
        return self._opened.result().name

    @property
    def safe(self) -> Codec:
        """See `Codec`."""
        return self._opened.result().safe

    def encode(self, texts: Sequence[str]) -> Encoded:
        """See `Codec`."""
        return self._opened.result().encode(texts)


def _groups(texts: Sequence[str], wrong: Sequence[int]) -> Iterator[Sequence[str]]:
    start = 0
    for index in [*wrong, len(texts)]:
        if index > start:
            yield texts[start:index]
        if index < len(texts):
            yield texts[index : index + 1]
        start = index + 1


def _starts(lengths: Any) -> Ints:
    import numpy as np

    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _byte_widths(tokenizer: Tokenizer, *, byte_level: bool) -> NDArray[np.int64]:
    """The bytes of text that each token stands for, as the tokenizer's own way of writing them tells."""
    import numpy as np

    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    widths = np.zeros(max(vocabulary.values(), default=-1) + 1, dtype=np.int64)
    for token, number in vocabulary.items():
        widths[number] = len(token) if byte_level else _sentence_piece_width(token)
    for number, added in tokenizer.get_added_tokens_decoder().items():
        widths[number] = len(added.content.encode())
    return widths


def _sentence_piece_width(token: str) -> int:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return 1
    return len(token.replace("\u2581", " ").encode())


def _characters(texts: Sequence[str], begins: Ints, offsets: Ints, bases: Ints) -> tuple[Ints, Ints]:
    """Positions in bytes as positions in characters: each byte counts on if it begins a character."""
    import numpy as np

    data = np.frombuffer("".join(texts).encode(), np.uint8)
    count = np.concatenate([[0], np.cumsum((data & 0xC0) != 0x80)])
    inside = np.zeros(len(data) + 1, dtype=bool)
    inside[:-1] = (data & 0xC0) == 0x80  # a token that begins within a character begins with that character
    return count[begins] - inside[begins], count[bases]
