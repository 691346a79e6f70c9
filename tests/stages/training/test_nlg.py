"""Scores of answers against the packages' own, one pair at a time, and a few written out."""

from __future__ import annotations

import pytest

from stages.training.nlg import score_answers
from tests.stages.training.taught import scores_by_hand

PAIRS = [
    ("the cat sat on the mat", "the cat lay on the mat."),
    ("我在北京大学读书。", "我在北京大学学习。"),
    ("It is 3.5 km. From Paris-Nord!", "It is 3.5 km from Paris-Nord.\nYes."),
    ("a b c d e f", "f e d c b a"),
]


@pytest.mark.parametrize("pairs", [*([pair] for pair in PAIRS), PAIRS], ids=[*"0123", "all"])
def test_against_the_packages(pairs: list[tuple[str, str]]) -> None:
    scores = score_answers(*zip(*pairs, strict=True))
    assert scores == pytest.approx(scores_by_hand(pairs), abs=1e-6)


def test_by_hand() -> None:
    """Of six words each, five are shared, three pairs of five, and the longest common subsequence has five."""
    scores = score_answers(["a b c d e f"], ["a b c x e f"])
    assert scores["rouge-1"] == pytest.approx(100 * 5 / 6, abs=1e-5)
    assert scores["rouge-2"] == pytest.approx(100 * 3 / 5, abs=1e-5)
    assert scores["rouge-l"] == pytest.approx(100 * 5 / 6, abs=1e-5)
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples; no group of four, for which method 3 puts 1/2 of 1/3.
    assert scores["bleu-4"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25, abs=1e-5)


def test_the_same_text_is_perfect() -> None:
    assert score_answers(["今天天气很好 a b c"], ["今天天气很好 a b c"]) == pytest.approx(
        dict.fromkeys(("rouge-1", "rouge-2", "rouge-l", "bleu-4"), 100.0), abs=1e-5
    )


@pytest.mark.parametrize("answer", ["", "  ", "...", "\n"])
def test_an_answer_without_a_word_is_worth_nothing(answer: str) -> None:
    both = score_answers([answer, "a b c d"], ["a b c d", "a b c d"])
    assert both == pytest.approx(dict.fromkeys(("rouge-1", "rouge-2", "rouge-l", "bleu-4"), 50.0), abs=1e-5)


def test_what_nothing_can_be_close_to_is_left_out() -> None:
    assert score_answers(["a b", "a b c d"], ["", "a b c d"])["bleu-4"] == pytest.approx(100)
    assert set(score_answers([], []).values()) == {0.0}


def test_long_answers() -> None:
    """Rouge goes down a call for each word."""
    text = " ".join(f"w{number % 97}" for number in range(1200))
    assert score_answers([text[:2000]], [text])["rouge-1"] > 90
