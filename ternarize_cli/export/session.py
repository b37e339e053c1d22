"""`export` as Python users call it, and `ternarize export`."""

from collections.abc import Callable
from pathlib import Path

from ternarize_cli.encoders.loading import model_name, resolve
from ternarize_cli.export.formats import Export, find_format
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.source import open_source

__all__ = ["export"]


def export(
    model: str | Path,
    output: str | Path,
    *,
    to: str,
    options: ExportOptions | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Export:
    """Writes a packed model in a form that runs without ternarize.

        ternarize.export("my-packed", "dist", to="wheel")

    Args:
        model: a packed model: a folder, a hub id or `package:NAME`.
        output: the folder to write, or to write into (wheel).
        to: the format, "wheel", "c", "onnx", "openvino", "gguf", "dense" or "compressed-tensors".
        options: the options of the format; None leaves each at its default.
        force: replace what exists.
        say: is told what is written when all arguments have been checked.

    Returns:
        The files, and what to do next. Its `check_gates` raises GateMissedError if `options.min_cosine` was missed.

    Raises:
        ModelNotFoundError: the model can't be found.
        CheckpointError: the model is damaged, or not packed.
        InputError: there is no such format, it does not know an option that is set, or an option has a value that
            can't be used.
        UnavailableError: the model can't be written in this format, or a library is missing for it.
        OutputError, OutputExistsError: the output can't be written, or exists and `force` is false.
    """
    form, options = find_format(to), options or ExportOptions()
    options.check_known(to, form.options)
    source = open_source(resolve(model), model_name(model))
    return form.write(source, Path(output), options, force=force, say=say)
