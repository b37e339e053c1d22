"""Measures `native` against llama.cpp on the shape of Qwen3-0.6B with random weights, one text of 128 or 512 tokens.

    CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python gguf
    python docs/results/measure_llama.py FOLDER [TYPE …] > docs/results/bench/qwen3-llama-cpu.json

A packed model is made once in FOLDER. The GGUF files in TQ2_0 and Q4_0 are written by the exporter (`--to gguf`), and
hold its codes and scales exactly; llama.cpp itself makes the other types from the first. Without a TYPE these are F16,
BF16 and Q8_0; any other type of llama.cpp can be named, such as Q2_K. Q2_0 is exact, too, but llama-cpp-python 0.3.36
has no vector instructions for it on x86-64. In `bench/zen4-qwen3-llama.json` llama.cpp itself made Q4_0, whose levels
are -8 to 7 eighths of the largest weight, so that one of the two signs became 7/8: hence its lower cosine there.

All candidates compute the final hidden state of every token, with two threads. They take turns, call by call; a turn is
a whole forward pass, and the median counts. `cosine` is the mean over tokens of the cosine with PyTorch's hidden state
from the same dense weights in float32: it shows that all do the same work.

llama.cpp multiplies by the output head even where only hidden states are asked for. With the published 151,936 tokens
that would be a quarter of its work, so the vocabulary is cut to 1,024: 0.2% of its work. To the others the size of a
vocabulary makes no difference.
"""

import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model

from ternarize_cli import hf, kernels
from ternarize_cli.bench.shapes import SHAPES
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.options import ConvertOptions
from ternarize_cli.compress.pack import pack
from ternarize_cli.encoders.module_replacement import dequantize
from ternarize_cli.export.gguf import write_file
from ternarize_cli.export.gguf_tensors import writer_of

try:
    import gguf
    import llama_cpp
except ImportError as error:
    sys.exit(f"{error.name} is missing: CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python gguf")

SECONDS, CALLS, THREADS, LENGTHS = 8, 5, 2, (128, 512)
SMALL: dict[str, int | None] = {"vocab_size": 1024, "eos_token_id": None, "pad_token_id": None}
PAUSE = 0.02  # seconds; OpenMP's threads of the candidate before spin for some milliseconds after its last loop
TYPES = ("F16", "BF16", "Q8_0", "Q4_0", "TQ2_0")
EXPORTED = {"TQ2_0": 2, "Q4_0": 4}
"""The bits of --bits for each type that the exporter writes."""
LOG_LEVEL_ERROR = 4  # of ggml.h
Candidate = Callable[[Tensor], Tensor]


@llama_cpp.llama_log_callback
def log(level: int, text: bytes, _: object) -> None:
    """Prints llama.cpp's errors, and leaves out its thousands of other lines."""
    if level == LOG_LEVEL_ERROR:
        print(text.decode(errors="replace"), end="", file=sys.stderr)


def packed_model(folder: Path) -> Path:
    """Makes the packed model, unless the folder has it, and returns its path."""
    packed = folder / "packed"
    if not packed.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        with TemporaryDirectory(dir=folder) as name:
            source, ternary = Path(name, "source"), Path(name, "ternary")
            Qwen3Model(Qwen3Config(**SHAPES["qwen3-0.6b"].config | SMALL)).save_pretrained(source)
            convert(source, ternary, None, ConvertOptions(check=False))
            pack(ternary, packed, check=False)
    return packed


def gguf_file(folder: Path, kind: str, packed: Qwen3Model) -> Path:
    """Makes the GGUF file of a type, unless the folder has it, and returns its path.

    The embedding table, which is the output head as well, is Q8_0.
    """
    path = folder / f"{kind}.gguf"
    if not path.exists():
        unfinished = path.with_suffix(".part")
        if kind in EXPORTED:
            writer, types = writer_of(packed, bits=EXPORTED[kind])
            if set(types) != {kind}:
                sys.exit(f"the export has the types {', '.join(types)}, not {kind} alone")
            writer.add_vocab_size(packed.config.vocab_size)
            writer.add_tokenizer_model("none")
            write_file(writer, unfinished)
        else:
            settings = llama_cpp.llama_model_quantize_default_params()
            settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
            settings.pure = settings.allow_requantize = True
            settings.token_embedding_type = settings.output_tensor_type = gguf.GGMLQuantizationType.Q8_0
            source = gguf_file(folder, "TQ2_0", packed)
            if llama_cpp.llama_model_quantize(bytes(source), bytes(unfinished), ctypes.byref(settings)):
                sys.exit(f"llama.cpp could not make {kind} of {source}")
        unfinished.rename(path)
    return path


def llama(path: Path) -> Candidate:
    """Opens a GGUF file; the result maps ids `[1, tokens]` to hidden states `[tokens, width]`."""
    settings = llama_cpp.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(bytes(path), settings)
    if not model:
        sys.exit(f"llama.cpp could not open {path}: delete it, and it is made again")
    choices = llama_cpp.llama_context_default_params()
    choices.n_ctx = choices.n_batch = choices.n_ubatch = max(LENGTHS)
    choices.n_threads = choices.n_threads_batch = THREADS
    choices.embeddings, choices.pooling_type = True, llama_cpp.LLAMA_POOLING_TYPE_NONE
    context, width = llama_cpp.llama_init_from_model(model, choices), llama_cpp.llama_model_n_embd(model)

    def run(ids: Tensor) -> Tensor:
        tokens = ids.shape[1]
        array = (ctypes.c_int32 * tokens)(*ids[0].tolist())  # must outlive the call: a batch only points to it
        batch = llama_cpp.llama_batch_get_one(array, tokens)
        batch.logits = (ctypes.c_int8 * tokens)(*[1] * tokens)  # the states of all tokens are wanted
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        if llama_cpp.llama_decode(context, batch):
            sys.exit(f"llama.cpp could not run {path} on {tokens} tokens")
        states = llama_cpp.llama_get_embeddings(context)  # waits for the result
        return torch.from_numpy(numpy.ctypeslib.as_array(states, (tokens, width)))  # until the next call

    return run


def candidates(folder: Path, kinds: list[str]) -> tuple[dict[str, Candidate], Candidate]:
    """Makes the candidates, and PyTorch's model of the same dense weights in float32, which is their reference."""
    packed = packed_model(folder)
    native = Qwen3Model.from_pretrained(packed).eval()
    files = {kind: gguf_file(folder, kind, native) for kind in kinds}
    print(kernels.use_backend(native, "native"), file=sys.stderr)
    dense = dequantize(Qwen3Model.from_pretrained(packed).eval())
    found: dict[str, Candidate] = {"native": lambda ids: native(input_ids=ids).last_hidden_state[0]}
    for kind, file in files.items():
        found[f"llama.cpp {kind}"] = llama(file)
    return found, lambda ids: dense(input_ids=ids).last_hidden_state[0]


def row(found: dict[str, Candidate], reference: Candidate, tokens: int) -> dict[str, object]:
    """Measures the candidates on one text; each has turns until it has had CALLS of them and SECONDS in all."""
    ids = torch.randint(5, 1000, (1, tokens), generator=torch.Generator().manual_seed(0))
    right = reference(ids)
    cosine = {name: torch.cosine_similarity(run(ids), right).mean().item() for name, run in found.items()}
    times: dict[str, list[float]] = {name: [] for name in found}
    while due := [name for name, t in times.items() if len(t) < CALLS or sum(t) < SECONDS]:
        for name in due:
            time.sleep(PAUSE)
            began = time.perf_counter()
            found[name](ids)
            times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(t) for name, t in times.items()}
    return {
        "tokens": tokens,
        "calls": {name: len(t) for name, t in times.items()},
        "median_ms": {name: round(1e3 * t, 2) for name, t in medians.items()},
        "tokens_per_second": {name: round(tokens / t, 1) for name, t in medians.items()},
        "cosine": {name: round(c, 5) for name, c in cosine.items()},
    }


@torch.inference_mode()
def main(folder: Path, kinds: list[str]) -> None:
    """Measures `native` and the named types of llama.cpp, or the usual ones, and prints JSON."""
    for kind in kinds:
        if not hasattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}"):
            sys.exit(f"llama.cpp has no type {kind}: name some of {', '.join(TYPES)}, or none for all of these")
    hf.quiet_libraries()
    llama_cpp.llama_log_set(log, None)
    torch.set_num_threads(THREADS)
    found, reference = candidates(folder / "qwen3-0.6b-llama", kinds or list(TYPES))
    rows = []
    for tokens in LENGTHS:
        rows.append(row(found, reference, tokens))
        print(rows[-1], file=sys.stderr)
    versions = {name: version(name) for name in ("torch", "transformers", "llama-cpp-python", "gguf")}
    built = llama_cpp.llama_print_system_info().decode().strip(" |")
    about = {"shape": "qwen3-0.6b", "vocabulary": SMALL["vocab_size"], "threads": THREADS, "versions": versions}
    print(json.dumps({**about, "llama.cpp": built, "rows": rows}, indent=1))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
