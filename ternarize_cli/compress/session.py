"""`convert` and `pack` as Python users call them: models by the names that the command line takes."""

from pathlib import Path

from ternarize_cli.compress import convert as conversion
from ternarize_cli.compress import pack as packing
from ternarize_cli.compress.calibrate import Calibration
from ternarize_cli.compress.options import ConvertOptions, ImportOptions
from ternarize_cli.encoders.loading import model_name, resolve
from ternarize_cli.errors import InputError, quoted
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.model_folder.model_kind import kind_of
from ternarize_cli.progress import Track, silent

__all__ = ["check_keeps_scores", "convert", "pack"]


def convert(
    model: str | Path,
    output: str | Path,
    scheme: Scheme | None = None,
    *,
    calibration: Calibration | None = None,
    options: ConvertOptions | None = None,
    force: bool = False,
    track: Track = silent,
) -> conversion.ConversionReport:
    """Replaces the linears of a full-precision encoder by ternary ones and writes a ternary checkpoint.

        ternarize.convert("my-model", "my-model-ternary", calibration=ternarize.Calibration(("texts.txt",)))

    Args:
        model: a folder, a hub id or `package:NAME`.
        output: the folder to write, atomically.
        scheme: rule, granularity and widths; None: `Scheme()`.
        calibration: texts or images to which codes, scales and biases are fitted in minutes; None: codes follow from
            the weights alone.
        options: what is left as it is, a smaller vocabulary, the seed; None: `ConvertOptions()`.
        force: replace the output if it exists.
        track: progress, as `ternarize_cli.progress` describes it.

    Returns:
        Errors and bytes, linear by linear, and what became of every tensor.

    Raises:
        ModelNotFoundError: the model can't be found.
        CheckpointError: the model is damaged, or is ternary already, or can't be opened and does not encode.
        TernarizeError: the result can't be opened, or its vectors are wrong; `options.check` switches this off.
        InputError: a pattern to skip matches nothing, the group size does not divide a width, the scheme's rule does
            not go with a calibration, or `check_keeps_scores` raises it.
        DataError: texts or images can't be read, or are not what the model reads.
        OutputError, OutputExistsError: the output can't be written, or exists and `force` is false.
    """
    options = options or ConvertOptions()
    folder = resolve(model, allow_pickle=options.allow_pickle)
    check_keeps_scores(folder, scheme or Scheme(), calibration)
    return conversion.convert(
        folder,
        Path(output),
        scheme,
        options,
        calibration=calibration,
        force=force,
        track=track,
        source_name=model_name(model),
    )


def check_keeps_scores(folder: Path, scheme: Scheme, calibration: Calibration | None) -> None:
    """Checks that a cross-encoder or sparse encoder is not made ternary by rounding alone, which costs it its scores.

    docs/results/quality.md has the measurement. Encoders keep more, and are taken in every way.

    Args:
        folder: the model folder.
        scheme: how the weights are rounded; int4 keeps the scores.
        calibration: what the codes are fitted to; None: they follow from the weights alone.

    Raises:
        InputError: the model scores pairs or weighs tokens, its levels are not int4, and there is no calibration.
        CheckpointError: a config is missing or damaged.
    """
    kind = kind_of(folder)
    if kind == "encoder" or calibration is not None or scheme.levels == "int4":
        return
    what, data = ("a cross-encoder", "pairs.csv") if kind == "cross-encoder" else ("a sparse encoder", "texts.txt")
    raise InputError(
        f"{folder} is {what}, and rounding its weights to {scheme.levels} ones does not keep its scores",
        hint=f"--calibrate {data}, or --levels int4, or train it at once: "
        f"ternarize distill {quoted(folder)} --teacher {quoted(folder)} --data {data}",
    )


def pack(
    student: str | Path,
    output: str | Path,
    *,
    codec: str | None = None,
    check: bool = True,
    force: bool = False,
    imported: ImportOptions | None = None,
    track: Track = silent,
) -> packing.PackReport:
    """Freezes a ternary checkpoint into a packed model of 2-bit codes, or 1.6-bit ones.

        ternarize.pack("my-model-distilled", "my-model-packed")

    Args:
        student: a ternary checkpoint, as `convert` or `distill` writes it; or a model that others have quantised to few
            bits (bitnet of transformers, compressed-tensors, torchao), whose values stay as they are.
        output: the folder to write, atomically.
        codec: how codes lie in bytes, "2bit" (1/4 byte a weight) or "base3" (1/5 byte) for ternary weights; None: the
            first that holds the checkpoint's levels.
        check: open both models and compare a few vectors before the output gets its name; needs memory for a model.
        force: replace the output if it exists.
        imported: how a model of others is taken over; None for any other.
        track: progress, as `ternarize_cli.progress` describes it.

    Returns:
        Bytes before and after, by kind of tensor.

    Raises:
        ModelNotFoundError: the checkpoint can't be found.
        CheckpointError: the checkpoint is damaged or pickled, or is not ternary, or is packed already; or it is a model
            of others that a packed model can't hold.
        FormatError: a value is not finite or does not fit float16, or the description does not fit the weights.
        TernarizeError: the packed model can't be opened, or gives other vectors than the checkpoint.
        InputError: the codec does not hold the checkpoint's levels, or `imported` is given for a model of ours.
        OutputError, OutputExistsError: the output can't be written, or exists and `force` is false.
    """
    return packing.pack(
        resolve(student), Path(output), codec=codec, check=check, force=force, imported=imported, track=track
    )
