"""Where the numbers come from: processor, versions, threads."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from prlhf.models.base import BaseModel

PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl")


def describe(base: BaseModel) -> dict[str, Any]:
    """The machine, the libraries and the model, for the page and the JSON."""
    device = base.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": device.type,
        "gpu": gpu,
        "cpu": _cpu(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "model": str(base.source.get("name", base.path.name)),
        "parameters": sum(p.numel() for p in base.model.parameters()),
        "dtype": str(base.model.dtype).removeprefix("torch."),
    }


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def sentence(machine: dict[str, Any]) -> str:
    """The same in words."""
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    return (
        f"{where}; {machine['model']} ({machine['parameters'] / 1e6:.1f} M parameters, "
        f"{machine['dtype']}); Python {machine['python']}, {packages}."
    )
