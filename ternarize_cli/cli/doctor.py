"""Defines `ternarize doctor`, which shows what this machine can run, and why it can't run the other backends."""

from typing import Annotated, Any

import typer

from ternarize_cli.cli.options import Json
from ternarize_cli.cli.output import Output, megabytes

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("doctor")(_doctor)


def _doctor(
    backend: Annotated[
        str | None, typer.Option("--backend", metavar="NAME", help="Exit with code 4 if this backend can't run.")
    ] = None,
    json: Json = False,
) -> None:
    """Show what this machine can run, and why it can't run the rest.

    Shows CPU, GPU, versions, disk space, optional extras and backends.
    """
    from ternarize_cli.bench.environment import examine
    from ternarize_cli.kernels import require_backend

    out = Output(json_mode=json)
    found = examine()
    _show(out, found)
    out.result(found)
    if backend is not None and backend != "auto":
        require_backend(backend)


def _show(out: Output, found: dict[str, Any]) -> None:
    from ternarize_cli.kernels.bitblas import BitBlas

    for name, value in _machine_lines(found["machine"]) + _disk_lines(found):
        out.text(f"{name:<22} {value}")
    out.text("")
    for extra in found["extras"]:
        has = ", ".join(f"{name} {number or '(missing)'}" for name, number in extra["packages"].items())
        way = "" if extra["installed"] else f"; get it with: pip install 'ternarize-cli[{extra['name']}]'"
        out.text(f"{'extra ' + extra['name']:<22} {has}{way}")
    out.text("")
    out.table(
        "backends",
        ["--backend", "device", "weights in memory", "levels", "available"],
        [
            (b["name"], b["device"], b["weights"], ", ".join(b["levels"]), "yes" if b["available"] else "no")
            for b in found["backends"]
        ],
    )
    for b in found["backends"]:
        if not b["available"]:
            out.text(f"{b['name']} can't run here: {b['reason']}")
        elif b["name"] == "bitblas" and (note := BitBlas().note()) is not None:
            out.text(note)
    if sets := found["native_instruction_sets"]:
        others = f"; TERNARIZE_NATIVE_ISA={'|'.join(sets[1:])} chooses another one" if sets[1:] else ""
        out.text(f"native uses the instruction set {sets[0]}{others}")


def _machine_lines(machine: dict[str, Any]) -> list[tuple[str, str]]:
    gpus = [f"{g['name']} ({g['capability']}, {megabytes(g['memory_bytes'])})" for g in machine["gpus"]]
    return [
        ("CPU", f"{machine['cpu']} ({', '.join(machine['isa']) or 'instruction sets unknown'})"),
        ("cores", f"{machine['usable_cores']} usable of {machine['logical_cores']} ({machine['cores']} physical)"),
        ("threads", f"{machine['threads']} (torch; its own kernels use {machine['torch_isa']})"),
        ("load", " ".join(f"{value:.2f}" for value in machine["load"])),
        ("memory", megabytes(machine["memory_bytes"])),
        ("GPU", "; ".join(gpus) or "none that torch can use"),
        ("system", machine["os"]),
        *((name, number or "not installed") for name, number in machine["versions"].items()),
    ]


def _disk_lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    hub = found["hub"]
    network = "offline (HF_HUB_OFFLINE is set)" if hub["offline"] else "may be asked"
    return [
        *((disk["purpose"], f"{megabytes(disk['free_bytes'])} free in {disk['path']}") for disk in found["disks"]),
        ("hub", f"{network}; models in the cache: {hub['models']}"),
    ]
