"""Turns standard rows into token ids and labels, batch by batch: `for tokens in Encoder(…).encode(conversations): …`.

A row is encoded as a whole, as at serving time; which of its tokens are trained is told from their place in the text.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from stages.data.rows import RowError
from stages.data.spans import SpanFinder
from stages.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Encoding, Tokenizer

    from stages.data.chat_template import Span

    Ids = NDArray[np.int32]

Messages = Sequence[Mapping[str, str]]
Rendered = tuple[str, "list[Span]"]

__all__ = ["NOT_TRAINED", "Encoder", "Tokens"]

NOT_TRAINED = -100
TEXTS_A_CALL = 256


@dataclass(frozen=True)
class Tokens:
    """One row.

    Attributes:
        input_ids: int32, [length].
        labels: int32, [length]: the id where it is trained, else -100.
        truncated: whether the row was longer.
    """

    input_ids: Ids
    labels: Ids
    truncated: bool = False


@dataclass
class Encoder:
    """Renders, encodes, labels and cuts rows, and counts those that are dropped.

    Attributes:
        tokenizer: of the `tokenizers` library.
        finder: renders rows.
        name: of the rows, for messages.
        max_length: tokens of a row at most; None for no limit.
        truncation: `left` keeps the last max_length tokens of a longer row, `delete` drops it.
        strict: a row that cannot be rendered is an error.
        num_threads: that encode; rendering goes on beside them.
        dropped: reasons and how often.
        first_reasons: why the first ten rows could not be rendered.
    """

    tokenizer: Tokenizer
    finder: SpanFinder
    name: str
    max_length: int | None
    truncation: Literal["left", "delete"]
    strict: bool = False
    num_threads: int = 1
    dropped: dict[str, int] = field(default_factory=dict)
    first_reasons: list[str] = field(default_factory=list)
    _row: int = 0

    def encode(self, conversations: Iterable[Messages]) -> Iterator[Tokens]:
        """The rows' tokens, in order; dropped rows are missing.

        Raises:
            DataError: a row cannot be rendered, with `strict`.
        """
        with _one_thread_a_call(), ThreadPoolExecutor(self.num_threads, thread_name_prefix="encode") as pool:
            running: deque[Future[list[Tokens | str]]] = deque()
            for rendered in _chunks(map(self._render, conversations)):
                running.append(pool.submit(self._encode, rendered))
                while len(running) > 2 * self.num_threads:
                    yield from self._kept(running.popleft().result())
            while running:
                yield from self._kept(running.popleft().result())

    def _render(self, messages: Messages) -> Rendered | None:
        self._row += 1
        try:
            return self.finder.render(messages)
        except RowError as error:
            if self.strict:
                raise DataError(f"{self.name} row {self._row}: {error}") from error
            self._drop("cannot be rendered", f"{self.name} row {self._row}: {error}")
            return None

    def _encode(self, rendered: Sequence[Rendered]) -> list[Tokens | str]:
        """Tokens, or why a row is dropped. It runs in several threads and changes nothing."""
        encodings = self.tokenizer.encode_batch([text for text, _ in rendered], add_special_tokens=False)
        return [self._cut(_label(encoding, spans)) for encoding, (_, spans) in zip(encodings, rendered, strict=True)]

    def _cut(self, tokens: Tokens) -> Tokens | str:
        if self.max_length is not None and len(tokens.input_ids) > self.max_length:
            if self.truncation == "delete":
                return "too long"
            tokens = Tokens(tokens.input_ids[-self.max_length :], tokens.labels[-self.max_length :], truncated=True)
        return tokens if (tokens.labels != NOT_TRAINED).any() else "nothing to train"

    def _kept(self, results: Sequence[Tokens | str]) -> list[Tokens]:
        kept = []
        for result in results:
            if isinstance(result, str):
                self._drop(result)
            else:
                kept.append(result)
        return kept

    def _drop(self, kind: str, reason: str | None = None) -> None:
        self.dropped[kind] = self.dropped.get(kind, 0) + 1
        if reason and len(self.first_reasons) < 10:
            self.first_reasons.append(reason)


def _chunks(rendered: Iterable[Rendered | None]) -> Iterator[list[Rendered]]:
    chunk = []
    for one in rendered:
        if one is not None:
            chunk.append(one)
        if len(chunk) == TEXTS_A_CALL:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _label(encoding: Encoding, spans: Sequence[Span]) -> Tokens:
    import numpy as np

    ids = np.array(encoding.ids, dtype=np.int32)
    labels = np.full_like(ids, NOT_TRAINED)
    for start, end in spans:
        first = _first_token(encoding, start, end)
        if first is not None:
            last = _last_token(encoding, end, first)
            labels[first : last + 1] = ids[first : last + 1]
    return Tokens(ids, labels)


def _first_token(encoding: Encoding, start: int, end: int) -> int | None:
    """The first token that begins in [start, end): one that begins before belongs to the prompt in part."""
    for position in range(start, end):
        token: int | None = encoding.char_to_token(position)
        if token is not None and _begin(encoding, token) >= start:
            return token
    return None


def _last_token(encoding: Encoding, end: int, first: int) -> int:
    """The last token that begins before `end`; a character may be spread over several."""
    last = next((t for p in range(end - 1, -1, -1) if (t := encoding.char_to_token(p)) is not None), first)
    while last + 1 < len(encoding.ids) and _begin(encoding, last + 1) < end:
        last += 1
    return last


def _begin(encoding: Encoding, token: int) -> int:
    characters = encoding.token_to_chars(token)
    assert characters is not None, token
    return characters[0]


@contextmanager
def _one_thread_a_call() -> Iterator[None]:
    """Keeps the library from using every core for each call: `num_threads` calls run side by side instead."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
