"""`ternarize inspect`."""

import typer

from ternarize_cli.cli.options import AllowPickle, Json, ModelArgument
from ternarize_cli.cli.output import Output, megabytes

__all__ = ["register"]


def inspect(model: ModelArgument, allow_pickle: AllowPickle = False, json: Json = False) -> None:
    """Say what a model is, and what is in it.

    Shows its stage, scheme and source, and every linear and embedding with its bytes and zeros.
    """
    from ternarize_cli.inspect import inspect as run
    from ternarize_cli.models import resolve

    out = Output(json_mode=json)
    folder = resolve(model, allow_pickle=allow_pickle)
    found = run(folder, allow_pickle=allow_pickle)
    facts: list[tuple[str, object]] = [
        ("stage", found.stage),
        ("architecture", found.architecture),
        ("parameters", f"{found.parameters:,}"),
        ("weights on disk", megabytes(found.bytes)),
        ("content hash", found.sha256),
    ]
    if found.artifact is not None:
        description = found.artifact.to_dict()
        facts += [(k, v) for k, v in description.items() if k not in ("quant_method", "stage") and v not in (None, [])]
    out.table(str(folder), ["", "value"], facts)
    out.table(
        f"{len(found.modules)} linears and embeddings",
        ["module", "kind", "shape", "bytes", "zeros", "mean scale"],
        [
            (
                m.name,
                m.kind,
                f"{m.shape[0]} × {m.shape[1]}",
                m.bytes,
                "" if m.zeros is None else f"{m.zeros:.1%}",
                "" if m.scale is None else f"{m.scale:.4f}",
            )
            for m in found.modules
        ],
    )
    values = {k: v for k, v in vars(found).items() if k not in ("artifact", "modules")}
    values["quantization_config"] = found.artifact.to_dict() if found.artifact else None
    out.result({"model": str(folder), **values, "modules": [vars(m) for m in found.modules]})


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("inspect")(inspect)
