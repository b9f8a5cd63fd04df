# SPDX-License-Identifier: GPL-3.0-or-later
"""What jaxstem runs on, and what would make it run better: `jaxstem doctor`.

`examine` collects the facts, and never fails: what cannot be found out is None, or stands as the
error that came instead. `advice` is one line drawn from them.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from jaxstem.runtime.cache import default_cache, entries, limit, trouble
from jaxstem.version import __version__

_GIBIBYTE, _MEGABYTE = 2**30, 10**6

_INSTALL_GPU = "python -m pip install -r requirements-gpu.txt"


def examine() -> dict[str, Any]:
    """Versions, devices, what the cache holds, and packaged models; sizes in bytes."""
    versions = {name: _version(name) for name in ("jax", "jaxlib", "flax", "numpy")}
    devices, error = _devices()
    facts = {
        "versions": {"jaxstem": __version__, "python": platform.python_version(), **versions},
        "platform": platform.platform(),
        "cores": _cores(),
        "memory": _memory(),
        "devices": devices,
        "device_error": error,
        "gpu_present": _gpu_present(),
        "cache": _cache(),
        "models": _models(),
    }
    return facts | {"advice": advice(facts)}


def advice(facts: dict[str, Any]) -> str:
    """The one thing to do, or that all is well."""
    asked_for = os.environ.get("JAX_PLATFORMS")
    accelerated = any(device["platform"] != "cpu" for device in facts["devices"])
    if facts["device_error"]:
        doing = f"unset JAX_PLATFORMS={asked_for}" if asked_for else "install jax again"
        return f"jax finds no device to compute on ({facts['device_error']}): {doing}."
    if not facts["models"]:
        return "The packaged models are missing: install jaxstem again."
    if facts["gpu_present"] and not accelerated:
        if asked_for:
            return f"A {facts['gpu_present']} GPU is idle: unset JAX_PLATFORMS={asked_for}."
        if facts["gpu_present"] == "NVIDIA":
            return f"An NVIDIA GPU is idle: {_INSTALL_GPU}"
        return "An AMD GPU is idle: install jax for ROCm (https://docs.jax.dev/installation)."
    if facts["cache"]["trouble"]:
        return f"{facts['cache']['trouble']}, so programs are compiled anew: set JAXSTEM_CACHE."
    if not accelerated:
        return "All is well; there is no accelerator, and jaxstem computes on the processor."
    return "All is well."


def to_text(facts: dict[str, Any]) -> str:
    """The facts and, as the last line, the advice."""
    versions = facts["versions"]
    memory = _gigabytes(facts["memory"])
    rows = [(name, version or "not found") for name, version in versions.items()]
    rows += [("system", f"{facts['platform']}, {facts['cores']} cores, {memory}")]
    for device in facts["devices"]:
        name = f"{device['platform']} {device['id']}: {device['kind']}"
        rows.append(("device", f"{name}, {_gigabytes(device['memory'])}"))
    cache = facts["cache"]
    most = f", at most {cache['limit'] / _MEGABYTE:.0f} MB"
    rows.append(("cache", f"{cache['folder']}{most}" if cache["folder"] else "off"))
    for kind, held in cache["kinds"].items():
        size = f"{held['files']} files, {held['bytes'] / _MEGABYTE:.1f} MB in {held['folder']}"
        rows.append((f"  {kind}", size))
    for name, model in facts["models"].items():
        serves = f"{', '.join(model['phases'])}, {model['voltage_kv']:g} kV"
        rows.append(("model", f"{name}: {serves}, k_max {model['k_max']:g} 1/Å"))
    width = max(len(name) for name, _ in rows)
    return "\n".join([*(f"{name:<{width}}  {value}" for name, value in rows), "", facts["advice"]])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> tuple[list[dict[str, Any]], str | None]:
    """The devices that jax computes on, or why there are none."""
    try:
        import jax

        return [_device(device) for device in jax.devices()], None
    except Exception as error:  # whatever a broken driver or plugin raises
        return [], " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def _device(device) -> dict[str, Any]:
    statistics = device.memory_stats() or {}
    on_cpu = device.platform == "cpu"
    return {
        "id": device.id,
        "platform": device.platform,
        "kind": device.device_kind,
        "memory": _memory() if on_cpu else statistics.get("bytes_limit"),
    }


def _gpu_present() -> str | None:
    """The maker of a GPU that the system knows of, whether jax uses it or not."""
    if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        return "NVIDIA"
    return "AMD" if Path("/dev/kfd").exists() else None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _cache() -> dict[str, Any]:
    """Where the cache lies, what of each kind is in it, and why no more could be put there."""
    folder = default_cache()
    wrong = trouble(folder) if folder else None
    if folder and not wrong and not os.access(folder, os.W_OK):
        wrong = f"{folder} cannot be written"
    kinds: dict[str, dict[str, Any]] = {}
    for entry in entries(folder) if folder else []:
        held = kinds.setdefault(entry.kind, {"folder": entry.path.parent, "files": 0, "bytes": 0})
        held["files"] += 1
        held["bytes"] += entry.size
    return {
        "folder": folder,
        "limit": limit(),
        "trouble": wrong,
        "kinds": dict(sorted(kinds.items())),
    }


def _models() -> dict[str, dict[str, Any]]:
    """What each packaged model serves."""
    found = {}
    root = resources.files("jaxstem") / "models"
    for folder in sorted(root.iterdir(), key=lambda x: x.name) if root.is_dir() else []:
        try:
            told = json.loads((folder / "model.json").read_text())
            phases = [phase["crystal"]["name"] for phase in told["phases"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found[folder.name] = {
            "phases": phases,
            "voltage_kv": told["voltage_kv"],
            "k_max": told["k_max"],
        }
    return found


def _gigabytes(size: int | None) -> str:
    return "memory not known" if size is None else f"{size / _GIBIBYTE:.1f} GiB"
