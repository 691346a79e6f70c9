"""Runs evalscope; a file of its own, run by the environment `evaluate`, which has nothing of Martlet's: `JOB.json`.

Stands on the standard library and evalscope alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Runs every benchmark of the job and writes evalscope's own reports, all into one `result.json`."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    _use_words_without_downloads()
    results = [run(job, benchmark) for benchmark in job["benchmarks"]]
    Path(job["result"]).write_text(json.dumps(results, ensure_ascii=False), encoding="utf-8")


def run(job: dict[str, Any], benchmark: dict[str, Any]) -> dict[str, Any]:
    """One benchmark against the server: evalscope's report, and the errors of its metrics."""
    from evalscope import TaskConfig, run_task
    from evalscope.utils.multi_choices import MultipleChoiceTemplate

    options: dict[str, Any] = {"local_path": benchmark["data"], "subset_list": benchmark["subsets"]}
    if benchmark["name"] == "general_mcq" and not benchmark["is_chinese"]:
        options["prompt_template"] = MultipleChoiceTemplate.SINGLE_ANSWER  # its own default asks in Chinese
    work = Path(benchmark["work"])
    config = TaskConfig(
        model=job["model"],
        api_url=job["api_url"],
        api_key="none",
        eval_type="openai_api",
        datasets=[benchmark["name"]],
        dataset_args={benchmark["name"]: options},
        eval_batch_size=1,  # one after the other: the engine answers no faster, and the order stays the same
        generation_config=job["generation"],
        work_dir=str(work),
        no_timestamp=True,
        seed=job["seed"],
        enable_progress_tracker=False,
    )
    report = run_task(config)[benchmark["name"]]
    reviews = [
        json.loads(line) for path in sorted(work.glob("reviews/*/*.jsonl")) for line in path.open(encoding="utf-8")
    ]
    return {"report": json.loads(json.dumps(report.to_dict(), default=str)), "metric_errors": metric_errors(reviews)}


def metric_errors(reviews: list[dict[str, Any]]) -> list[str]:
    """What evalscope counted as 0 because it could not compute it."""
    found: dict[str, None] = {}
    for review in reviews:
        metadata = review["sample_score"]["score"].get("metadata") or {}
        for metric, reason in (metadata.get("metric_errors") or {}).items():
            found[f"{metric}: {' '.join(str(reason).split())[:200]}"] = None
    return list(found)


def _use_words_without_downloads() -> None:
    """BLEU splits words with nltk, which splits sentences first, with data that it would fetch.

    Where it cannot, evalscope counts BLEU as 0. Words of a whole text need no such data: BLEU is the same everywhere.
    """
    import functools

    import nltk

    nltk.word_tokenize = functools.partial(nltk.word_tokenize, preserve_line=True)


if __name__ == "__main__":
    main()
