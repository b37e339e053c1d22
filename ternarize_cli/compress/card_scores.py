"""Writes scores into a model's card: a table in its text, and `model-index` in its metadata, which the hub shows.

Everything else of the card stays as it is, to the byte: the key `model-index` is cut out of the YAML and written anew,
and the rest of the YAML is not even parsed into something that would be written. Results of others in `model-index`
stay; ours are known by `args: {tool: ternarize}` of their metrics, and are replaced.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ternarize_cli.compress.card_file import BEGIN, END, HEADER, RESULTS, SCORES, USAGE, metadata_in, read_text
from ternarize_cli.storage import files

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

__all__ = ["TOOL", "write_scores"]

TOOL = {"tool": "ternarize"}
"""What `args` of our metrics hold."""


def write_scores(path: Path, text: str, results: "Sequence[EvalResult]" = (), *, name: str = "model") -> bool:
    """Writes scores into a card, in the place of earlier scores of ours, and changes nothing else.

    A card without scores gets them above our code, or else at its end; where there is no card, one is made.

    Args:
        path: the card.
        text: Markdown with the scores, without a heading; it must hold no HTML comment.
        results: the scores for the metadata, with `TOOL` in their `metric_args`.
        name: the model's name in `model-index`, if that has none yet.

    Returns:
        Whether the metadata have the results now; they are left as they are if they can't be read.

    Raises:
        InputError: the card is longer than 4 MB, or no text in UTF-8.
        OutputError: the card can't be written.
    """
    card = read_text(path) if path.exists() else ""
    end = "\r\n" if "\r\n" in card else "\n"
    block = f"<!-- ternarize: scores -->\n## What it scores\n\n{text.strip()}\n\n<!-- ternarize: end of scores -->\n\n"
    block = block.replace("\n", end)
    own = card.partition(BEGIN)[2].partition(END)[0]
    mark = USAGE if own.count(USAGE) == 1 else END
    if SCORES.search(card):
        card = SCORES.sub(lambda _: block, card, count=1)
    elif card.count(END) == 1:
        card = card.replace(mark, block + mark)
    else:
        card += ("" if not card or card.endswith("\n") else end) + block
    header = HEADER.match(card)
    made = _with_results("" if header is None else header[1], results, name, end)
    if made is not None and header is not None:
        card = card[: header.start(1)] + made + card[header.end(1) :]
    elif made:
        card = f"---{end}{made}{end}---{end}{card}"
    with files.atomic_file(path, force=True) as partial:
        partial.write_text(card, encoding="utf-8", newline="")
    return made is not None


def _with_results(header: str, results: "Sequence[EvalResult]", name: str, end: str) -> str | None:
    """Puts results into the YAML of a card; returns None if the YAML, or the results in it, can't be read."""
    from huggingface_hub import ModelCardData

    known: dict[str, Any] | None = metadata_in(header) if header.strip() else {}
    index = RESULTS.search(header + "\n")
    if known is None or "model-index" in known or (index is not None and known.get("eval_results") is None):
        return None
    others = [one for one in known.get("eval_results") or () if not _is_ours(one)]
    rest = RESULTS.sub("", header + end).rstrip("\r\n")
    if not (others or results):
        return rest
    title = known.get("model_name") if others else None
    data = ModelCardData(model_name=title or name, eval_results=[*others, *results])
    made = data.to_yaml(line_break=end)
    whole = f"{rest}{end}{made}" if rest.strip() else made
    return whole if (metadata_in(whole) or {}).get("eval_results") else None


def _is_ours(result: "EvalResult") -> bool:
    return isinstance(result.metric_args, dict) and result.metric_args.get("tool") == TOOL["tool"]
