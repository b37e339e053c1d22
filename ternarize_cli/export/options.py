"""What `ternarize export` takes: options, of which each format knows some."""

from dataclasses import dataclass, fields
from typing import Annotated

from ternarize_cli.errors import InputError
from ternarize_cli.storage.command_option import Option, plain_signature

__all__ = ["ExportOptions"]


@plain_signature
@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported. An option that a format does not know must keep its default.

    Attributes:
        name: the name of the Python package in a wheel; None: the model's name, made a valid one.
        version: the version of that package.
        platform: the platform that the export is for, as in the names of wheels; None: this one.
        library: the file of the compiled library for that platform; None: the one beside the installed one.
        dockerfile: whether a Dockerfile is written beside the wheel.
        serve: whether that image starts the server.
        pooled: whether the graph pools and normalises, too.
        bits: bits of a weight's code in a product: 2, or 4 for runtimes without products of 2 bits.
        dtype: the dtype of a dense checkpoint, "fp16", "bf16" or "fp32".
        check: whether the result runs in its own runtime, and its vectors are compared with the packed model's.
        texts: a file with the texts of the check; None: a hundred built-in ones.
        min_cosine: the least mean cosine of the check; None: any will do.
    """

    name: Annotated[str | None, Option("wheel: name of the Python package; default: from the model's name.")] = None
    version: Annotated[str | None, Option("wheel: version of the Python package; default: 1.0.")] = None
    platform: Annotated[
        str | None,
        Option("Platform of the result, such as manylinux_2_28_aarch64; default: this one.", metavar="TAG"),
    ] = None
    library: Annotated[
        str | None,
        Option("The library for that platform, libternarize_alone of its build.", metavar="FILE"),
    ] = None
    dockerfile: Annotated[bool, Option("wheel: also write a Dockerfile that installs it.")] = False
    serve: Annotated[bool, Option("wheel: let the image of the Dockerfile start the server.")] = False
    pooled: Annotated[
        bool, Option("onnx, openvino: pool and normalise in the graph, too, and give sentence_embedding.")
    ] = False
    bits: Annotated[
        int, Option("onnx, openvino, gguf: bits of a weight; 4 for runtimes without products of 2 bits.", min=2, max=4)
    ] = 2
    dtype: Annotated[str, Option("dense: dtype of the values, fp16, bf16 or fp32.", metavar="fp16|bf16|fp32")] = "fp16"
    check: Annotated[
        bool, Option("Run the result in its own runtime, and compare its vectors with the packed model's.")
    ] = True
    texts: Annotated[
        str | None, Option("Texts for --check, one a line; default: 100 built-in ones.", metavar="FILE")
    ] = None
    min_cosine: Annotated[
        float | None, Option("Exit with 3 if the mean cosine of --check is lower.", min=-1, max=1)
    ] = None

    def check_known(self, form: str, known: frozenset[str]) -> None:
        """Checks that only options are set that a format knows.

        Args:
            form: the name of the format.
            known: the names of its options.

        Raises:
            InputError: another option is set.
        """
        for field in fields(self):
            if field.name not in known and getattr(self, field.name) != field.default:
                options = ", ".join(_flag(name) for name in sorted(known)) or "none"
                flag = _flag(f"no_{field.name}" if field.default is True else field.name)
                raise InputError(f"{flag} means nothing for the format {form}", hint=f"options of {form}: {options}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
