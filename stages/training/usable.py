"""Rows that are encoded while training goes on: `Usable(encoder, 49152, "train", logger)(row, 3)`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stages.errors import DataError
from stages.training.rows import check_ids, trains

if TYPE_CHECKING:
    from stages.data.encode import RowEncoder
    from stages.data.media_encode import MediaEncoder

__all__ = ["Usable"]

LEFT_OUT = ("too long", "nothing to train")
"""What `strict` does not mind: the row is well formed."""
NAMED = 10
"""So many unusable rows are named; the others are counted."""


class Usable:
    """Encodes rows, and names those that are too long, have nothing to train or cannot be encoded.

    Attributes:
        num_left_out: how often a row could not be used.
    """

    def __init__(
        self,
        encoder: RowEncoder | MediaEncoder,
        vocabulary: int,
        name: str,
        logger: logging.Logger,
        *,
        strict: bool = False,
    ) -> None:
        """Nothing is encoded yet.

        Args:
            encoder: what tokenize would have used.
            vocabulary: tokens that the model knows.
            name: of the rows, for messages.
            logger: is told of the first ten.
            strict: whether a row that cannot be rendered is an error.
        """
        self.strict = strict
        self.encoder, self.vocabulary, self.name, self.logger = encoder, vocabulary, name, logger
        self.num_left_out = 0
        self._named: set[int] = set()

    def __call__(self, row: Mapping[str, Any], number: int) -> dict[str, Any] | None:
        """The row as a trainer takes it, or None if it cannot be trained.

        Raises:
            DataError: an id or a class that the model does not know; with `strict`, a row that cannot be rendered.
        """
        try:
            encoded = self.encoder.encode_row(row)
        except DataError as error:
            raise DataError(f"{self.name} row {number}: {error}") from None
        reason = encoded if isinstance(encoded, str) else None
        if not isinstance(encoded, str):
            if getattr(self.encoder, "num_labels", None) is not None:
                check_ids(encoded.input_ids, f"{self.name} row {number}", self.vocabulary)
                return {"input_ids": encoded.input_ids, "label": encoded.label}
            item: dict[str, Any] = {"input_ids": encoded.input_ids, "labels": encoded.labels}
            if encoded.loss_scale is not None:
                item["loss_scale"] = encoded.loss_scale
            item |= encoded.tensors
            check_ids(encoded.input_ids, f"{self.name} row {number}", self.vocabulary)
            if trains(item):
                return item
        if self.strict and reason not in (None, *LEFT_OUT):
            raise DataError(f"{self.name} row {number}: {reason}")
        self.num_left_out += 1
        if len(self._named) < NAMED and number not in self._named:
            self._named.add(number)
            self.logger.warning("train: %s row %d is left out: %s", self.name, number, reason or "nothing to train")
        return None
