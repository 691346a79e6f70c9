"""Puts the model's name and its author into self-cognition rows: `SelfCognition(["小燕", "Swift"], ["甲"]).fill(row)`.

Such rows have {{NAME}} and {{AUTHOR}} where the names belong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from logging import Logger
from typing import Any

from stages.errors import DataError

__all__ = ["SelfCognition"]

PLACEHOLDERS = {"NAME": "model_name", "AUTHOR": "model_author"}
PLACEHOLDER = re.compile(r"\{\{\s*(NAME|AUTHOR|name|author)\s*\}\}")
CHINESE = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")


class SelfCognition:
    """Knows the names, and whether they were of any use.

    Attributes:
        num_filled: rows in which there was something to fill in.
        num_left: rows with {{name}} or {{author}} in lower case that were left as they are, as no names are given.
    """

    def __init__(self, model_name: Sequence[str] = (), model_author: Sequence[str] = ()) -> None:
        """
        Args:
            model_name: in Chinese, then in English; one alone stands for both.
            model_author: likewise.
        """
        self._names = {"NAME": tuple(model_name), "AUTHOR": tuple(model_author)}
        self.num_filled = 0
        self.num_left = 0

    def fill(self, row: dict[str, Any], tag: object = None) -> None:
        """Replaces the placeholders in a standard row.

        Lower case is as good if a name is given; without one it is taken for a text about templates.

        Args:
            row: it is changed.
            tag: `zh` or `en`: the row's language; told from whether the text has Chinese characters, if it is neither.

        Raises:
            DataError: a placeholder would stay.
        """
        texts = [message["content"] for message in row["messages"]]
        for text in texts:
            if "{{" in text:
                break
        else:
            if "{{" not in row.get("rejected_response", ""):
                return
        found = set(PLACEHOLDER.findall("\n".join([*texts, row.get("rejected_response", "")])))
        if not found:
            return
        if not any(self._names.values()) and all(name.islower() for name in found):
            self.num_left += 1
            return
        missing = sorted({name.upper() for name in found if not self._names[name.upper()]}, reverse=True)
        if missing:
            places = " and ".join(f"{{{{{name}}}}}" for name in missing)
            raise DataError(
                f"{places} would stay as it is: a self-cognition row needs `--model_name` and `--model_author`, "
                "each one name, or a Chinese and an English one"
            )
        index = 0 if self._is_chinese(texts, tag) else -1
        for message in row["messages"]:
            message["content"] = self._replace(message["content"], index)
        if "rejected_response" in row:
            row["rejected_response"] = self._replace(row["rejected_response"], index)
        self.num_filled += 1

    def report(self, logger: Logger) -> None:
        """Says what was given in vain, or may have been forgotten."""
        flags = " ".join(f"`--{flag}`" for name, flag in PLACEHOLDERS.items() if self._names[name])
        if flags and not self.num_filled:
            logger.warning("%s: no row has {{NAME}} or {{AUTHOR}}, so nothing was replaced", flags)
        if self.num_left:
            logger.warning(
                "%d rows have {{name}} or {{author}}, which stay: `--model_name` and `--model_author` fill them in",
                self.num_left,
            )

    def _replace(self, text: str, index: int) -> str:
        return PLACEHOLDER.sub(lambda match: self._names[match[1].upper()][index], text)

    @staticmethod
    def _is_chinese(texts: Sequence[str], tag: object) -> bool:
        if tag in ("zh", "en"):
            return tag == "zh"
        return any(CHINESE.search(text) for text in texts)
