"""Finds what BitBLAS needs on a machine, and chooses how its kernels are compiled for a GPU.

BitBLAS's last release was made for CUDA 12 and GPUs up to Ada:

    card                  BitBLAS writes for     nvcc compiles for
    Ampere, Ada (8.x)     the card               the card
    Hopper and newer      sm_80                  the card, from compute_80; where this nvcc does not know the card,
                                                 to PTX of compute_80, which the driver compiles

(BitBLAS itself does not dequantise for sm_90.) Its libraries link the CUDA 12 runtime and NVRTC, which newer builds of
torch don't bring, so they are searched for in the wheels of the extra and in CUDA 12 toolkits.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch

__all__ = ["card", "environment", "flags", "headers", "known_codes", "missing", "nvcc", "target", "versions"]

_AMPERE, _HOPPER = (8, 0), (9, 0)
_LIBRARIES = {
    "libcudart.so.12": ("nvidia.cuda_runtime", "nvidia-cuda-runtime-cu12"),
    "libnvrtc.so.12": ("nvidia.cuda_nvrtc", "nvidia-cuda-nvrtc-cu12"),
}
_EXTRA = "pip install 'ternarize-cli[bitblas]'"


def missing() -> str | None:
    """Names every reason why BitBLAS can't run on this machine; None if it can."""
    reasons = []
    if not torch.cuda.is_available():
        reasons.append("torch sees no NVIDIA GPU")
    elif torch.version.cuda is None:
        reasons.append("this torch is not built for NVIDIA GPUs")
    elif torch.cuda.get_device_capability() < _AMPERE:
        reasons.append(f"{torch.cuda.get_device_name()} is older than Ampere")
    if importlib.util.find_spec("bitblas") is None:
        reasons.append(f"the package bitblas is not installed ({_EXTRA})")
    for name, (_, wheel) in _LIBRARIES.items():
        if _folder_of(name) is None and not _known_to_loader(name):
            reasons.append(f"{name}, which bitblas links, is not found ({_EXTRA} brings {wheel})")
    if nvcc() is None:
        reasons.append("nvcc is not on PATH nor under CUDA_HOME (it compiles the kernels)")
    return "; ".join(reasons) or None


def nvcc() -> str | None:
    """Finds the path of nvcc; None if it is missing."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which(str(Path(home) / "bin" / "nvcc"))


@lru_cache
def _asked(compiler: str, question: str) -> str:
    try:
        return subprocess.run([compiler, question], capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def versions() -> str:
    """The versions of BitBLAS and nvcc, as a part of a file name."""
    try:
        library = importlib.metadata.version("bitblas")
    except importlib.metadata.PackageNotFoundError:
        library = "unknown"
    found = re.search(r"\bV(\d[\d.]*)", _asked(nvcc() or "nvcc", "--version"))
    return f"bitblas{library}-nvcc{found[1] if found else 'unknown'}"


def card() -> str:
    """The name and compute capability of the current GPU, as a part of a file name."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", torch.cuda.get_device_name()).strip("-")
    return "{}-sm{}{}".format(name, *torch.cuda.get_device_capability())


def target(capability: tuple[int, int]) -> str:
    """The TVM target for which BitBLAS writes kernels of a GPU with this compute capability."""
    return "cuda -arch=sm_{}{}".format(*(_AMPERE if capability >= _HOPPER else capability))


def flags(capability: tuple[int, int], known: str) -> list[str]:
    """Chooses nvcc's flags for a GPU.

    Args:
        capability: compute capability of the GPU.
        known: output of `nvcc --list-gpu-code`.
    """
    code = "sm_{}{}".format(*capability)
    virtual = "compute_{}{}".format(*(_AMPERE if capability >= _HOPPER else capability))
    if capability >= _HOPPER and code not in known.split():
        code = virtual
    return ["-std=c++17", "-w", "--compiler-options", "-fPIC", "--shared", "-gencode", f"arch={virtual},code={code}"]


def known_codes() -> str:
    """Lists the GPU architectures that the installed nvcc compiles for."""
    return _asked(nvcc() or "nvcc", "--list-gpu-code")


def headers() -> list[str]:
    """Flags that name the folders of headers that BitBLAS's kernels include."""
    spec = importlib.util.find_spec("bitblas")
    root = Path((spec.submodule_search_locations or ["."])[0] if spec else ".") / "3rdparty"
    return [f"-I{root / 'tilelang' / 'src'}", f"-I{root / 'cutlass' / 'include'}"]


def environment() -> dict[str, str]:
    """Makes the environment variables of a process that imports BitBLAS, so that it finds its libraries and nvcc."""
    found = dict(os.environ)
    folders = [str(folder) for name in _LIBRARIES if (folder := _folder_of(name)) is not None]
    found["LD_LIBRARY_PATH"] = os.pathsep.join([*folders, *filter(None, [found.get("LD_LIBRARY_PATH")])])
    if (compiler := nvcc()) is not None:
        found["PATH"] = os.pathsep.join([*filter(None, [found.get("PATH")]), str(Path(compiler).parent)])
    return found


def _folder_of(library: str) -> Path | None:
    """Finds the folder of a library that may be outside the loader's search path."""
    return next((folder for folder in _folders(_LIBRARIES[library][0]) if (folder / library).is_file()), None)


def _folders(package: str) -> Iterator[Path]:
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    for root in (spec.submodule_search_locations or []) if spec else []:
        yield Path(root) / "lib"
    for toolkit in sorted(Path("/usr/local").glob("cuda-12*"), reverse=True):
        yield toolkit / "lib64"


def _known_to_loader(library: str) -> bool:
    own = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    return any((Path(folder) / library).is_file() for folder in own if folder) or library in _loadable()


@lru_cache
def _loadable() -> str:
    ldconfig = shutil.which("ldconfig") or "/sbin/ldconfig"
    return _asked(ldconfig, "-p")
