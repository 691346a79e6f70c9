"""How close generated answers are to those of the rows, in words they share: `score_answers(["a b"], ["a c"])`.

Rouge-1, rouge-2 and rouge-l are F-measures, bleu-4 is smoothed where a length of word groups has no match (method 3);
Jieba finds the words, so that Chinese has some. It is what SWIFT measures, but that an answer without a word is worth 0
instead of not being counted.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["NLG", "score_answers"]

NLG = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")
"""What is measured."""


def score_answers(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The mean of each measure of `NLG`, from 0 to 100.

    Args:
        answers: what was generated.
        references: what should have been; one without a word is left out, as nothing can be close to it.
    """
    sums, count = dict.fromkeys(NLG, 0.0), 0
    for answer, reference in zip(answers, references, strict=True):
        given, wanted = _words(answer), _words(reference)
        if wanted:
            count += 1
            for name, value in _score(given, wanted).items():
                sums[name] += value
    return {name: round(100 * total / max(count, 1), 6) for name, total in sums.items()}


def _score(given: list[str], wanted: list[str]) -> dict[str, float]:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge import Rouge

    if not _sentences(given) or not _sentences(wanted):  # nothing but full stops, which Rouge cannot compare
        return dict.fromkeys(NLG, 0.0)
    with _deep(len(given) + len(wanted)):
        scores = Rouge().get_scores(" ".join(given), " ".join(wanted))[0]
    found = {name: float(scores[name]["f"]) for name in NLG[:3]}
    return found | {"bleu-4": float(sentence_bleu([wanted], given, smoothing_function=SmoothingFunction().method3))}


def _sentences(words: Sequence[str]) -> bool:
    return any(word.strip(". \t\n") for word in words)


@contextmanager
def _deep(words: int) -> Iterator[None]:
    """Rouge walks through both texts in calls of calls."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + 2 * words)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _words(text: str) -> list[str]:
    return [word for word in (word.strip(" ") for word in _cutter()(text)) if word]


@cache
def _cutter() -> Callable[[str], Any]:
    """Jieba's, whose dictionary is read in a second; it would leave a copy in a folder that anybody may write to."""
    from tempfile import TemporaryDirectory

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in its source, seen where it is compiled
        import jieba

    jieba.setLogLevel("ERROR")
    cutter = jieba.Tokenizer()
    with TemporaryDirectory() as folder:
        cutter.tmp_dir = folder
        cutter.initialize()
    cut: Callable[[str], Any] = cutter.cut
    return cut
