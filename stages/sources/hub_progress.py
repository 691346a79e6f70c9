"""Passes the bytes that a hub's library has fetched on to a reporter: `hugging_face_bar(progress, "owner/name")`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

__all__ = ["hugging_face_bar", "modelscope_callback"]

Progress = Callable[[float, float, str], None]


def hugging_face_bar(progress: Progress, name: str) -> type[Any]:
    """A tqdm class, drawn nowhere, for `snapshot_download(tqdm_class=…)`."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc] # tqdm has no types
        """Reports the bar that counts bytes on disk; there are others, of bytes in transfer and of files."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._counts = "Reconstruct" in str(options.get("desc"))
            options["file"] = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - lives as long as the bar
            super().__init__(*arguments, **options)

        def update(self, n: float | None = 1) -> bool | None:
            moved: bool | None = super().update(n)
            if self._counts:
                progress(
                    self.n, self.total or self.n, f"{name}: {self.n / 1e6:.0f} of {(self.total or 0) / 1e6:.0f} MB"
                )
            return moved

        def close(self) -> None:
            super().close()
            self.fp.close()

    return Bar


def modelscope_callback(progress: Progress, name: str, total: int) -> type[Any]:
    """A class for `download_repo(progress_callbacks=[…])`, of which every file gets an instance."""
    from modelscope_hub import ProgressCallback

    done = [0]

    class Bytes(ProgressCallback):
        """Adds up the bytes of all files."""

        def update(self, size: int) -> None:
            done[0] += size
            progress(done[0], total, f"{name}: {done[0] / 1e6:.0f} of {total / 1e6:.0f} MB")

    return Bytes
