"""Defines `ternarize index search`, which answers queries from an index."""

from typing import Annotated

import typer

from ternarize_cli.cli.index_options import Index, SomeEncoderOptions
from ternarize_cli.cli.options import Json, Quiet
from ternarize_cli.errors import quoted
from ternarize_cli.index.options import SearchOptions

__all__ = ["search"]


def search(
    index: Index,
    query: Annotated[
        list[str] | None, typer.Argument(metavar="[QUERY|-]...", help="What to look for; - reads queries from stdin.")
    ] = None,
    queries: Annotated[
        str | None,
        typer.Option("--queries", metavar="FILE|-", help="A file of queries, one per line or JSONL; - is stdin."),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option("--image", metavar="FILE|DIR", help="Images to look for, in an index of images; repeatable."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1_000_000, help="Answers per query.")] = 10,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="MODEL", help="The index's own model, if it has moved, or a student of that model."
        ),
    ] = None,
    asymmetric: Annotated[
        bool, typer.Option("--asymmetric", help="Encode queries with --model, even if it is another model.")
    ] = False,
    *,
    options: SearchOptions,
    encoder: SomeEncoderOptions,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the texts nearest to each query, or the images nearest to each image."""
    from ternarize_cli.cli.output import Output
    from ternarize_cli.errors import InputError

    out = Output(json_mode=json, quiet=quiet)
    if not query and queries is None and not image:
        raise InputError(
            "there is no query", hint=f'ternarize index search {quoted(index)} "your query", or --queries FILE'
        )
    if asymmetric and model is None:
        raise InputError("--asymmetric needs the model that encodes queries", hint="--model MODEL")

    from ternarize_cli import open_index
    from ternarize_cli.index.format import read_info
    from ternarize_cli.index.queries import read_queries

    names, asked = read_queries(read_info(index).kind, index, query or [], queries, image or [])
    searcher = open_index(index, model=model, asymmetric=asymmetric, options=options, encoder=encoder)
    found = searcher.search(asked, k, names=names)
    if searcher.encode.truncation:
        out.warn(searcher.encode.truncation)
    if searcher.student:
        out.note(f"queries encoded by {model}, documents by {searcher.info.model}")
    for text, hits in zip(names, found, strict=True):
        out.text(_printable(text))
        for hit in hits:
            out.text(f"  {hit.score:7.4f}  {_printable(hit.id)}  {_printable(_shortened(hit.text))}")
    seconds = searcher.seconds
    out.note(f"encoding {1e3 * seconds['encoding']:.1f} ms, searching {1e3 * seconds['searching']:.2f} ms")
    out.result(
        {
            "metric": searcher.info.metric,
            "k": k,
            "milliseconds": {name: round(1e3 * value, 3) for name, value in seconds.items()},
            "results": [
                {"query": hit.query, "rank": rank, "id": hit.id, "score": hit.score, "text": hit.text}
                for hits in found
                for rank, hit in enumerate(hits, start=1)
            ],
        }
    )


def _printable(text: str) -> str:
    """Escapes characters that are not printable, which could steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shortened(text: str, width: int = 100) -> str:
    line = " ".join(text[: 2 * width].split())
    return line if len(line) <= width else line[: width - 1] + "…"
