"""Whether images fit into the memory of this machine, before one of them is decoded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from scalesearch.data.spec import SPLITS
from scalesearch.text import listed

_SHARE = 0.6  # of what is available: networks and their training need room as well


def refuse_too_large(images: Mapping[str, int], resolution: int) -> None:
    """Raises: ValueError with the sizes where so many images of a split do not fit; 3 bytes a pixel."""
    for words in too_large(images, resolution):
        raise ValueError(words)


def too_large(images: Mapping[str, int], resolution: int) -> list[str]:
    """The sizes in a sentence where so many images of a split do not fit; none where they do."""
    number = sum(images.values())
    needed, available = number * 3 * resolution**2, available_memory()
    if needed > _SHARE * available:
        parts = listed([f"{count} for {SPLITS[name]}" for name, count in images.items()])
        return [
            f"{number} images of {resolution} px ({parts}) take {needed / 1e9:.1f} GB, more than {100 * _SHARE:.0f} % "
            f"of the {available / 1e9:.1f} GB of memory available; lower data.resolution or data.num_train"
        ]
    return []


def available_memory() -> int:
    """Bytes that can be taken without swapping; the limit of the control group counts (containers, cluster jobs)."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (limit := (group / "memory.max").read_text().strip()) != "max":
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(stat["inactive_file"])  # file cache is given up
        available = min(available, int(limit) - used)
    return available
