"""A tiny model that has learnt a few answers, some of them right, and the rows that it learnt them from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.stages.training.lab import SHORT, Lab

ROWS = [
    ("what is red", "red."),
    ("what is sea", "sea is blue."),
    ("red red", "red."),
    ("hello sea", "sea is blue."),
    ("sea", "sea is green."),
    ("red", "red."),
]
LEARN = SHORT | {
    "max_steps": 32,
    "save_strategy": "no",
    "eval_strategy": "no",
    "train_type": "full",
    "learning_rate": 2e-2,
    "gradient_accumulation_steps": 1,
    "per_device_train_batch_size": 6,
}
STILL = SHORT | {"max_steps": 1, "train_type": "full", "learning_rate": 1e-12, "eval_strategy": "steps"}
"""A step that changes no prediction."""


def teach(folder: Path, model: Path, tokens: Path) -> Path:
    """The model's folder."""
    lab = Lab(folder, model, tokens)
    lab.run(LEARN)
    return lab.out


def predictions(lab: Lab) -> list[dict[str, Any]]:
    """What validations have written down."""
    return [json.loads(line) for line in (lab.attachments / "predict.jsonl").read_text().splitlines()]


def scores_by_hand(pairs: list[tuple[str, str]]) -> dict[str, float]:
    """The mean scores of answers and references, by the packages themselves."""
    import warnings

    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge import Rouge

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in its source
        import jieba
    jieba.setLogLevel("ERROR")
    sums = dict.fromkeys(("rouge-1", "rouge-2", "rouge-l", "bleu-4"), 0.0)
    for answer, reference in pairs:
        given, wanted = ([word for word in jieba.lcut(text) if word != " "] for text in (answer, reference))
        if answer.strip(". "):
            for name, score in Rouge().get_scores(" ".join(given), " ".join(wanted))[0].items():
                sums[name] += score["f"]
            sums["bleu-4"] += sentence_bleu([wanted], given, smoothing_function=SmoothingFunction().method3)
    return {name: 100 * total / len(pairs) for name, total in sums.items()}
