"""Facts of the machine and the process for the manifest: `machine_facts()`, `with peak_memory() as peak: …`."""

from __future__ import annotations

import os
import platform
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["PeakMemory", "git_commit", "machine_facts", "peak_memory"]


def machine_facts() -> dict[str, Any]:
    """Host, processor, GPUs that torch has already seen, Python, the commit of the code, the image of the container.

    `image` is what the container was started from: a name, or a digest where it was pinned. `image_content` says which
    image that was: the digest of all that is in it, written by its build.
    """
    return {
        "host": socket.gethostname(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpus": _gpus(),
        "python": platform.python_version(),
        "commit": git_commit(),
        "image": os.environ.get("MARTLET_IMAGE"),
        "image_content": _image_content(),
    }


@lru_cache
def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """Names of the CUDA devices, if a stage has imported torch; importing it only to ask would take seconds."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


@lru_cache
def git_commit() -> str | None:
    """The commit of Martlet's own code, with `+changes` if files of it differ; in an image, what it was built from."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return os.environ.get("MARTLET_COMMIT")
    try:
        commit = _git(here, "rev-parse", "HEAD").stdout.strip()
        changed = _git(here, "diff", "--quiet", "HEAD", "--", "stages").returncode == 1
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (f"{commit}+changes" if changed else commit) or None


@lru_cache
def _image_content() -> str | None:
    """What `containers/install.sh` has written beside the code; a checkout has none."""
    with suppress(OSError):
        return (Path(__file__).resolve().parents[2] / ".content").read_text().strip() or None
    return None


def _git(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=5, check=False)


class PeakMemory:
    """The answer of `peak_memory`: `bytes` is None until the block has ended."""

    bytes: int | None = None


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """The most memory that was resident in this process during the block; child processes are not counted.

    Linux keeps a high-water mark that can be reset (`/proc/self/clear_refs`), so nothing has to be sampled. Where it
    cannot be reset, the mark of the whole process stands instead: then a stage that needs less than an earlier
    one in the same process shows the earlier one's. Two blocks at once in one process see each other's memory.
    """
    peak = PeakMemory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    try:
        yield peak
    finally:
        peak.bytes = _high_water_bytes()


def _high_water_bytes() -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
