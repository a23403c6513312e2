"""The processor: whether it has bfloat16, and what kind it is."""

import os
import platform
import re
from pathlib import Path


def has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16, as Linux reports it. False if Linux doesn't say."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags


def describe_processor() -> str:
    """The kind of processor, and the cores that this process may use. Both decide in which order sums are computed."""
    cpuinfo = Path("/proc/cpuinfo")
    first = cpuinfo.read_text().split("\n\n")[0] if cpuinfo.exists() else ""
    kind = re.findall(r"^(?:model name|cpu family|model|CPU implementer|CPU part)\s*: (.+)$", first, re.MULTILINE)
    return f"{' '.join([platform.machine(), *kind])}, {len(os.sched_getaffinity(0))} cores"
