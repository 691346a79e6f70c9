"""A model with a head that tells classes apart: `auto, config = classifier(folder, config, num_labels=3)`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ModelError
from stages.training.rows import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "HEADS",
    "check_head",
    "class_loss",
    "classifier",
    "classifier_config",
    "is_classifier",
    "padding_of",
    "pads_with",
]

HEADS = ("score", "classifier")
"""What transformers calls the head; peft trains it in full under these names."""


def classifier(folder: Path, config: Any, num_labels: int) -> tuple[Any, Any]:
    """The Auto class of transformers, and the configuration that it is to be opened with.

    Raises:
        ModelError: there is no such class for this model, it is quantized, it tells another number of classes apart,
            has no token to pad rows with, or is a checkpoint of another training.
    """
    from transformers import AutoModelForSequenceClassification

    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise ModelError(f"transformers knows no classifier of the type {config.model_type}: drop `--num_labels`")
    if getattr(config, "quantization_config", None):
        raise ModelError("the model is quantized, and a classifier is trained in floating point: give the float model")
    if is_classifier(config) and config.num_labels != num_labels:
        raise ModelError(f"the model tells {config.num_labels} classes apart: `--num_labels {num_labels}` must be that")
    if not is_classifier(config):
        if (folder / "trainer_state.json").is_file():
            raise ModelError(
                f"the checkpoint {folder.name} is of a model that writes: drop `--num_labels {num_labels}`"
            )
        config.num_labels = num_labels
    config.problem_type = "single_label_classification"
    config.get_text_config().pad_token_id = pads_with(folder, config)
    return AutoModelForSequenceClassification, config


def classifier_config(folder: Path, stored: Mapping[str, Any], num_labels: int) -> dict[str, Any]:
    """What stands in the config.json of a classifier made of this model.

    Args:
        folder: the model's.
        stored: its config.json.
        num_labels: classes that are told apart.

    Raises:
        ModelError: as `classifier`.
    """
    from transformers import AutoConfig

    auto, config = classifier(folder, AutoConfig.from_pretrained(folder, local_files_only=True), num_labels)
    padding = {"pad_token_id": config.get_text_config().pad_token_id}
    changed = {
        "architectures": [auto._model_mapping[type(config)].__name__],
        "id2label": {str(number): name for number, name in config.id2label.items()},
        "label2id": dict(config.label2id),
        "problem_type": config.problem_type,
        **padding,
    }
    if isinstance(stored.get("text_config"), Mapping):
        changed["text_config"] = {**stored["text_config"], **padding}
    return {**stored, **changed}


def is_classifier(config: Any) -> bool:
    """Whether a model has a head for classes already."""
    return any(name.endswith("ForSequenceClassification") for name in getattr(config, "architectures", None) or ())


def pads_with(folder: Path, config: Any) -> int:
    """The id that pads rows: the tokenizer's, so that whoever uses it pads alike, else the model's, else its last.

    Raises:
        ModelError: there is none.
    """
    from stages.data.tokenizer import load_tokenizer

    text = config.get_text_config()
    found: list[Any] = [getattr(text, "pad_token_id", None), getattr(text, "eos_token_id", None)]
    if (folder / "tokenizer.json").is_file():  # a checkpoint has none, and has been given its id before
        tokenizer = load_tokenizer(folder)
        found = [tokenizer.token_id("pad_token"), *found, tokenizer.token_id("eos_token")]
    flat = (one for some in found for one in (some if isinstance(some, list) else [some]))
    chosen = next((one for one in flat if isinstance(one, int) and 0 <= one < text.vocab_size), None)
    if chosen is None:
        raise ModelError(
            "the model has no token to pad rows with, which tells where a row ends: put a pad_token into its "
            "tokenizer_config.json"
        )
    return chosen


def padding_of(model: Any) -> int:
    """The id that a classifier takes for padding."""
    padding: int = model.config.get_text_config().pad_token_id
    return padding


def check_head(model: Any) -> None:
    """Refuses a classifier whose head would not be trained beside adapters: peft knows it by its name.

    Raises:
        ModelError: it has another one.
    """
    children = [name for name, _ in model.named_children()]
    if not set(HEADS) & set(children):
        raise ModelError(
            f"this classifier's head is neither {' nor '.join(HEADS)}, and peft would not train it (the model has "
            f"{', '.join(children)}): give `--train_type full`"
        )


def class_loss(
    logits: Tensor, labels: Tensor, num_rows: Tensor | int | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """Sum of cross entropies, divided by the number of rows.

    Args:
        logits: (rows, classes).
        labels: (rows), the classes; IGNORED counts for nothing.
        num_rows: of all batches of an optimizer step; None for those of this batch.
        label_smoothing: share of probability that the loss gives to other classes.

    Returns:
        A scalar, in float32.
    """
    from torch.nn.functional import cross_entropy

    labels = labels.to(logits.device)
    total = cross_entropy(
        logits.float(), labels, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing
    )
    count = (labels != IGNORED).sum().clamp(min=1) if num_rows is None else num_rows
    return total / (count.to(total.device) if hasattr(count, "to") else count)
