"""This machine → what a training finds: torch, GPUs, and the CPU's instructions for bfloat16.

A build needs none of it, so nothing here is `missing`. torch is imported in a process of its own: this one stays free
of it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from vmae_data.amounts import format_bytes
from vmae_data.console import CheckResult

__all__ = ["training_checks"]

GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, WSL
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
TORCH_SECONDS = 120
WORTH_IT = 1.5  # a step is more than matrix products
_ASK_TORCH = """\
import json, torch
cuda = torch.cuda
found = [cuda.get_device_properties(n) for n in range(cuda.device_count())] if cuda.is_available() else []
print(json.dumps({"cuda": torch.version.cuda or torch.version.hip, "gpus": [[p.name, p.total_memory] for p in found]}))
"""
# CPU time, so that other programs do not count; the best of several products.
_ASK_SPEED = """\
import json, time, torch
torch.set_num_threads(1)
def seconds(dtype):
    x = torch.ones(1024, 1024, dtype=dtype)
    def once():
        started_at = time.process_time()
        x @ x
        return time.process_time() - started_at
    return min(once() for _ in range(6))
print(json.dumps({"ratio": seconds(torch.float32) / seconds(torch.bfloat16)}))
"""


def training_checks(cpuinfo: str | None = None) -> Iterator[CheckResult]:
    """torch, GPU and bfloat16. `cpuinfo`: the text of /proc/cpuinfo."""
    advice = "a build works without it; to train: python -m pip install 'vmae[train]'"
    version = None
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        yield CheckResult("torch", "warning", "not installed", advice)
    else:
        yield from _torch_checks(version)
    yield _bfloat16(cpuinfo, has_torch=version is not None)


def _torch_checks(version: str) -> Iterator[CheckResult]:
    has_device = any(Path(device).exists() for device in GPU_DEVICES)
    if not has_device:  # no need to import torch, which takes seconds
        yield CheckResult("torch", "ok", version)
        yield CheckResult("GPU", "warning", "none on this machine", "train on the CPU only what is small")
        return
    answer = _ask_torch(_ASK_TORCH)
    if isinstance(answer, str):
        advice = "python -m pip install --force-reinstall torch"
        yield CheckResult("torch", "warning", f"{version}: can't be imported ({answer})", advice)
        return
    yield CheckResult("torch", "ok", f"{version}, CUDA or ROCm {answer['cuda'] or 'none'}")
    if answer["gpus"]:
        gpus = ", ".join(f"{name} with {format_bytes(memory)}" for name, memory in answer["gpus"])
        yield CheckResult("GPU", "ok", f"{gpus}{_driver()}")
    else:
        advice = "install a torch for this GPU (pytorch.org/get-started), or update its driver (nvidia-smi)"
        yield CheckResult("GPU", "warning", f"this machine has one, but torch can't use it{_driver()}", advice)


def _driver() -> str:
    """The version of NVIDIA's driver, to compare with torch's CUDA. Empty for other GPUs."""
    with suppress(OSError):
        if found := re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", NVIDIA_DRIVER.read_text()):
            return f", driver {found[1]}"
    return ""


def _ask_torch(program: str) -> dict[str, Any] | str:
    """The answer of a process that imports torch, or why there is none."""
    words = [sys.executable, "-c", program]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TORCH_SECONDS, check=True)
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except subprocess.CalledProcessError as error:
        return str(error.stderr.strip().rpartition("\n")[2]) or f"status {error.returncode}"
    except (subprocess.TimeoutExpired, OSError, ValueError, IndexError) as error:
        return str(error)


def _bfloat16(cpuinfo: str | None, *, has_torch: bool) -> CheckResult:
    """`train.precision = "bfloat16"` pays on a CPU with these instructions: torch measures how much."""
    text = Path("/proc/cpuinfo").read_text("utf-8", "replace") if cpuinfo is None else cpuinfo
    flags = set(re.findall(r"\w+", text.partition("flags")[2].partition("\n")[0]))
    found = [name for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512 BF16")) if flag in flags]
    if found:
        text = f"{' and '.join(found)}: train.precision=bfloat16 pays on this CPU"
        answer = _ask_torch(_ASK_SPEED) if has_torch else ""
        if isinstance(answer, dict):
            text = f"{' and '.join(found)}: matrix products {answer['ratio']:.1f} × as fast as in float32. "
            pays = answer["ratio"] >= WORTH_IT
            text += f"train.precision=bfloat16 {'pays' if pays else 'does not pay'} on this CPU; auto is float32"
        return CheckResult("bfloat16 on the CPU", "ok", text)
    return CheckResult(
        "bfloat16 on the CPU", "ok", "no AMX, no AVX-512 BF16: float32 is the faster precision on this CPU"
    )
