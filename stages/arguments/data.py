"""SWIFT's data parameters: which rows to learn from, which to hold out, how they are read."""

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.arguments.base import Arguments, Strings, option

__all__ = ["DataSeedArguments", "DatasetArguments", "PluginArguments", "RowWorkArguments"]

Names = Annotated[Strings, Field(max_length=2)]


class DataSeedArguments(Arguments):
    """The seed of everything random about rows."""

    GROUP: ClassVar[str] = "Data Parameters"

    data_seed: int = option(42, ge=0, le=2**32 - 1)
    """Seed for sampling, splitting and shuffling rows."""


class RowWorkArguments(Arguments):
    """How rows are worked on."""

    GROUP: ClassVar[str] = "Data Parameters"

    dataset_num_proc: int = option(1, ge=1, in_key=False)
    """Threads that tokenize rows, and processes in which the datasets library reads them."""
    load_from_cache_file: bool = option(False, in_key=False)
    """Let the datasets library use its own cache of earlier work."""
    strict: bool = option(False)
    """Stop at the first malformed row instead of dropping it."""


class PluginArguments(Arguments):
    """Code of the user's own."""

    GROUP: ClassVar[str] = "Data Parameters"

    custom_register_path: Strings = option([])
    """Python files that register datasets, templates, loss scales, optimizers, losses or metrics; they are executed."""


class DatasetArguments(PluginArguments, DataSeedArguments, RowWorkArguments):
    """Rows: where they come from and how they are split."""

    GROUP: ClassVar[str] = "Data Parameters"

    dataset: Strings = option([])
    """Rows to train on: [hf::|ms::|pypi::]id_or_path[:subset][#count], several separated by spaces."""
    val_dataset: Strings = option([])
    """Rows to validate on, written as in dataset; split_dataset_ratio is then 0."""
    split_dataset_ratio: float = option(0.01, ge=0, le=1)
    """Share of each dataset that is held out for validation if val_dataset is not given."""
    streaming: bool = option(False)
    """Read rows as they are needed; needs max_steps."""
    download_mode: Literal["reuse_dataset_if_exists", "force_redownload"] = option(
        "reuse_dataset_if_exists", in_key=False
    )
    """Whether a dataset that was downloaded before is downloaded again."""
    model_name: Names = option([])
    """The name the model gives itself in self-cognition rows: in Chinese, then in English."""
    model_author: Names = option([])
    """The author it names in self-cognition rows: in Chinese, then in English."""
    media_dirs: Strings = option([], in_key=False)
    """Folder in which relative paths of images, videos and audios start; by default that of the data file."""
    media_state: str | None = option(None)
    """What the media beside a data file looked like; filled in when the rows are handed in."""
    custom_dataset_info: Strings = option([])
    """JSON files, or JSON text, that register datasets."""

    @model_validator(mode="after")
    def _settle_split(self) -> Self:
        asked = self._given("split_dataset_ratio") and self.split_dataset_ratio != 0
        if self.val_dataset and asked:
            raise ValueError(
                f"`--val_dataset` leaves nothing to split: drop `--split_dataset_ratio {self.split_dataset_ratio}`"
            )
        if self.streaming and asked:
            endless = [name for name in self.dataset if not re.search(r"#\d+$", name)]
            if endless:
                raise ValueError(
                    f"`--streaming` can split only what has an end: write {endless[0]}#10000, "
                    f"or drop `--split_dataset_ratio {self.split_dataset_ratio}`"
                )
        elif self.val_dataset or self.streaming:
            self._resolve(split_dataset_ratio=0.0)
        return self
