"""A CUDA device without a device: built here, and asked from a process of its own that runs on it.

PyTorch's CUDA code runs unchanged on it: launches, waits and what a capture refuses are those of a GPU. Values are not, all that is
read is zero, nor are times; a convolution counts as one launch. cuSOLVER and NCCL it does not know.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
HEADERS = ("cuda_runtime_api.h", "crt/host_defines.h")  # of the wheels nvidia-cuda-runtime and nvidia-cuda-crt
LIBRARIES = {  # what a process loads before its own: by these names torch finds the driver, and NVRTC
    "libcuda.so.1": (["device.cpp", "libraries.cpp"], "-Wl,-soname,libcuda.so.1"),
    "libnvrtc.so.13": (["nvrtc.cpp"], "-Wl,-soname,libnvrtc.so.13,--default-symver"),
}


ABOUT_A_RELEASE = "ignore:Guards may run slower on Python 3.13.0:RuntimeWarning"  # of Dynamo, as in pyproject.toml


def why_not() -> str | None:
    """Why there can be no null device here, or None where there can."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        return "the null device is built by g++ on Linux"
    if torch.version.cuda is None or torch.version.cuda.split(".")[0] != "13":
        return f"the null device stands for CUDA 13, this torch is made for {torch.version.cuda or 'CPUs alone'}"
    if torch.cuda.is_available():
        return "a GPU is at hand, which the null device would hide"
    if not all((headers() / name).exists() for name in HEADERS):
        return f"the null device is built with {' and '.join(HEADERS)}, which are not in {headers()}"
    return None


def headers() -> Path:
    """Where the wheels of CUDA that torch is installed with have their headers."""
    return Path(torch.__file__).parent.parent / "nvidia" / "cu13" / "include"


@dataclass(frozen=True)
class NullDevice:
    """The libraries, and what has been asked, in a folder that workers share."""

    folder: Path

    def build(self) -> None:
        flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Werror", f"-I{headers()}"]
        with FileLock(self.folder / "lock"):
            for name, (sources, linking) in LIBRARIES.items():
                if not (self.folder / name).exists():
                    command = ["g++", *flags, *(str(HERE / source) for source in sources), linking, "-o", str(self.folder / name)]
                    subprocess.run(command, check=True)

    def ask(self, rows: dict[str, list[str]]) -> dict[str, Any]:
        """What tests/null_cuda/TABLE.py answers about rows of each table, in one process that runs on it, asked once.

        cuDNN is asked by its older interface, which needs no plans; what compilers make and measure here is kept for nobody.
        """
        own = {
            "LD_PRELOAD": " ".join(str(self.folder / name) for name in LIBRARIES),
            "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in (".", "examples", "benchmarks")),
            "OMP_NUM_THREADS": "1",
        }
        how = {"TORCH_CUDNN_V8_API_DISABLED": "1", "USE_PYTORCH_KERNEL_CACHE": "0"}
        how |= dict.fromkeys(("TRITON_LIBCUDA_PATH", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"), str(self.folder))
        question = json.dumps(rows)
        kept = self.folder / f"{zlib.crc32(question.encode())}.json"
        with FileLock(f"{kept}.lock"):
            if not kept.exists():
                command = [sys.executable, "-W", "error", "-W", ABOUT_A_RELEASE, "-m", "tests.null_cuda", question]
                done = subprocess.run(command, cwd=ROOT, env={**os.environ, **own, **how}, capture_output=True, text=True, timeout=900)
                kept.write_text(done.stdout.splitlines()[-1] if done.returncode == 0 else json.dumps(done.stdout + done.stderr))
        answers = json.loads(kept.read_text())
        assert isinstance(answers, dict), answers
        return answers
