"""Memory that is free, and memory that was used: `peak = MemoryPeak("cpu"); …; peak.taken()`."""

from __future__ import annotations

from pathlib import Path

__all__ = ["MemoryPeak", "available_memory", "give_back_at_once", "memory_text"]

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
M_MMAP_THRESHOLD = -3
CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
"""Limit, use, and the part of it that can be dropped; of version 2, then of version 1."""


def available_memory(kind: str) -> int:
    """Bytes that can still be had: of a GPU, or of the machine within the limit of a container.

    Args:
        kind: `cuda` or `cpu`.
    """
    if kind == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    import psutil

    return min([psutil.virtual_memory().available, *_left_in_cgroups(Path("/sys/fs/cgroup"))])


def give_back_at_once() -> None:
    """Tells glibc to hand back what is freed from 256 KB on, instead of keeping it in holes of its heap.

    The tensors of training come in many sizes, and what is kept took 1.1 to 2.3 times what was used in trials; to get
    pages anew costs about a fifth more time. Other C libraries have their own ways.
    """
    import ctypes

    try:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 256 << 10)
    except (AttributeError, OSError, TypeError):
        return


def memory_text(size: float) -> str:
    """`3.4 GB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size, 0) / 1e6:.0f} MB"


class MemoryPeak:
    """The most that the process takes from now on, beyond what it has now."""

    def __init__(self, kind: str) -> None:
        """Begins.

        Args:
            kind: `cuda` or `cpu`.
        """
        self.kind = kind
        if kind == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
            return
        self._before, self._highest = _resident("VmRSS"), _resident("VmHWM")
        try:
            CLEAR.write_text("5", encoding="ascii")  # Linux forgets the peak
            self._highest = 0
        except OSError:
            pass

    def taken(self) -> int | None:
        """Bytes; None where the system does not say: no Linux, or a peak that is older and higher."""
        if self.kind == "cuda":
            import torch

            return torch.cuda.max_memory_allocated()
        highest = _resident("VmHWM")
        return highest - self._before if highest > self._highest else None


def _resident(name: str) -> int:
    """A figure of this process, in bytes; 0 where there is none."""
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _left_in_cgroups(root: Path) -> list[int]:
    left = []
    for limit, used, stat, droppable in CGROUPS:
        try:
            most, now = (int((root / name).read_text(encoding="ascii")) for name in (limit, used))
            lines = (root / stat).read_text(encoding="ascii").splitlines()
        except (OSError, ValueError):  # no such version, or no limit, which is called max
            continue
        spare = sum(int(line.split()[1]) for line in lines if line.startswith(f"{droppable} "))
        left.append(most - now + spare)
    return left
