"""Answers that a model in training generates for validation rows: `Answers(model, tokenizer, sampling).add(batch)`.

A row's prompt is all that stands before its last answer, the last tokens with a label in one piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.errors import DataError
from stages.serving.settings import generation_config
from stages.training.rows import IGNORED

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from stages.serving.settings import Sampling

__all__ = ["Answer", "Answers", "check_prompts", "last_answer"]

ROWS_CHECKED = 100


@dataclass(frozen=True)
class Answer:
    """What became of one row.

    Attributes:
        query: the prompt, as the model read it.
        response: the generated answer, without special tokens and stop words.
        label: the row's own answer.
        response_ids: generated, the end among them.
        label_ids: of the row's answer.
    """

    query: str
    response: str
    label: str
    response_ids: Any
    label_ids: Any


def last_answer(labels: Any) -> tuple[int, int]:
    """Where a row's last answer begins and ends; both 0 if it has none, the first 0 if there is no prompt before it."""
    import numpy as np

    trained = np.flatnonzero(np.asarray(labels) != IGNORED)
    if not len(trained):
        return 0, 0
    gaps = np.flatnonzero(np.diff(trained) > 1)
    return int(trained[gaps[-1] + 1] if len(gaps) else trained[0]), int(trained[-1]) + 1


def check_prompts(rows: Any) -> None:
    """Refuses rows that no answer can be generated for, as far as the first hundred show.

    Raises:
        DataError: none of them has a prompt.
    """
    some = range(min(len(rows), ROWS_CHECKED))
    if not any(last_answer(rows[number]["labels"])[0] for number in some):
        raise DataError(
            "`--predict_with_generate` answers what stands before a row's answer, and the validation rows are trained "
            "from their first token on: give `--loss_scale default`, or drop the flag"
        )


class Answers:
    """Generates greedily, or samples from torch's random state.

    Attributes:
        made: the answers so far, in the order of the rows.
        num_without_prompt: rows that were left out, as everything in them is the answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> None:
        """
        Args:
            tokenizer: the model's.
            sampling: how tokens are chosen.
        """
        self.tokenizer, self.sampling = tokenizer, sampling
        self.made: list[Answer] = []
        self.num_without_prompt = 0
        special = set(tokenizer.all_special_ids)
        special |= {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = special

    @property
    def samples(self) -> bool:
        """Whether answers may be by chance."""
        return self.sampling.temperature != 0

    def add(self, model: Any, batch: Mapping[str, Any]) -> None:
        """Generates the answers of a batch, padded on the right; rows without a label are passed over.

        Args:
            model: in evaluation mode.
            batch: as the trainer's loss takes it; what is neither a row of ids nor of their length belongs to media.
        """
        import torch

        found = [last_answer(labels) for labels in batch["labels"].tolist()]
        self.num_without_prompt += sum(start == 0 < end for start, end in found)
        rows = [number for number, (start, _) in enumerate(found) if start]
        if not rows or (len(rows) < len(found) and not _of_text(batch)):
            return
        prompts = _prompts(batch, rows, [found[row][0] for row in rows])
        references = [batch["input_ids"][row, slice(*found[row])].tolist() for row in rows]
        width = prompts["input_ids"].shape[1]
        config = generation_config(model, self.tokenizer, self.sampling, width)
        config.use_cache = True
        config.eos_token_id = [*dict.fromkeys([*config.eos_token_id, *self._turn_ends(references)])]
        with torch.no_grad():
            made = model.generate(**prompts, generation_config=config, tokenizer=self.tokenizer)[:, width:].tolist()
        for row, ids, reference in zip(rows, made, references, strict=True):
            query = batch["input_ids"][row, : found[row][0]].tolist()
            self.made.append(self._answer(query, _until(ids, config.eos_token_id), reference, config.eos_token_id))

    def _turn_ends(self, references: Sequence[Sequence[int]]) -> list[int]:
        """What ends the rows' answers, if it is a special token such as <|im_end|>; a line break may follow it."""
        ends = [next((one for one in reversed(ids[-2:]) if one in self._special), None) for ids in references]
        return [end for end in ends if end is not None]

    def _answer(self, query: list[int], ids: list[int], reference: list[int], ends: Sequence[int]) -> Answer:
        import numpy as np

        response = self._text(ids)
        cut = self.sampling.cut(response)
        return Answer(
            query=str(self.tokenizer.decode(query, skip_special_tokens=False)),
            response=response if cut is None else cut,
            label=self._text(_until(reference, ends)),
            response_ids=np.array(ids, dtype=np.int64),
            label_ids=np.array(reference, dtype=np.int64),
        )

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Up to the first end, which is kept."""
    return next((ids[: place + 1] for place, one in enumerate(ids) if one in ends), ids)


def _of_text(batch: Mapping[str, Any]) -> bool:
    shape = batch["input_ids"].shape
    return all(tensor.shape[:2] == shape for tensor in batch.values())


def _prompts(batch: Mapping[str, Any], rows: Sequence[int], lengths: Sequence[int]) -> dict[str, Tensor]:
    """What `generate` takes: the prompts, padded on the left; what a row has for each token goes with it."""
    import torch

    longest = max(lengths)
    shape = batch["input_ids"].shape
    made: dict[str, Tensor] = {}
    for name, tensor in batch.items():
        if name in ("labels", "loss_scale", "place", "position_ids", "attention_mask"):
            continue
        if tensor.shape[:2] == shape:
            whole = tensor.new_zeros((len(rows), longest, *tensor.shape[2:]))
            for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                whole[place, longest - length :] = tensor[row, :length]
            tensor = whole
        made[name] = tensor
    starts = torch.tensor([longest - length for length in lengths], device=batch["input_ids"].device)
    made["attention_mask"] = (torch.arange(longest, device=starts.device) >= starts[:, None]).long()
    return made
