"""Keeping only the tokens that a corpus uses.

In a multilingual model the token table is most of the file: 250,002 rows for a hundred languages, of which a service in
two languages uses a seventh. `select` splits the corpus with the model's own tokenizer, without truncation, bare and
behind each prompt, and decides what stays; `convert` writes those rows of the table; `write` makes the tokenizer and
config.json agree; `check` then splits the whole corpus again with the new tokenizer and compares id by id.

Special and added tokens always stay, and so does what keeps the tokenizer whole (see `tokenizer_files`). A text that
the corpus does not foresee is still split and embedded, into smaller pieces than before where its tokens are gone.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.anatomy import input_table
from ternarize_cli.errors import CheckpointError, DataError, TernarizeError
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage import weights
from ternarize_cli.storage.bounds import read_object
from ternarize_cli.tokenizers.tokenization import batches, corpus_files, encode, inputs, load_tokenizer, words
from ternarize_cli.tokenizers.tokenizer_files import TokenizerFile

__all__ = ["Vocabulary", "check", "select", "write"]

_UNKNOWN = 1 / 3
_PROBES = ("\U0010fffd", "a \U0010fffd b")
"""Texts with a private character, which no tokenizer knows."""


@dataclass(frozen=True)
class Vocabulary:
    """What stays of a vocabulary, as `select` decides it.

    Attributes:
        ids: the ids of the tokens that stay, ascending; the new id of a token is its place here.
        rows: number of rows of the token table in the source.
        row_bytes: bytes of one row in the source.
        tables: state-dict names of the token table, more than one where tensors are tied.
        corpus: the files whose tokens stay.
        tokens: number of tokens of the corpus with prompts, without special tokens.
        unknown: number of those tokens that no piece of the vocabulary fits.
        digests: a hash of the ids of each batch, by which `check` compares.
        file: the tokenizer's file.
    """

    ids: tuple[int, ...]
    rows: int
    row_bytes: int
    tables: frozenset[str]
    corpus: tuple[Path, ...]
    tokens: int
    unknown: int
    digests: tuple[bytes, ...] = field(repr=False)
    file: TokenizerFile = field(repr=False)

    @property
    def bytes_before(self) -> int:
        """Bytes of the token table in the source."""
        return self.rows * self.row_bytes

    @property
    def bytes_after(self) -> int:
        """Bytes of the rows that stay, in the source's dtype."""
        return len(self.ids) * self.row_bytes

    def summary(self) -> dict[str, int]:
        """Makes the JSON form: tokens and bytes of the table before and after, and tokens of the corpus."""
        return {
            "tokens_before": self.rows,
            "tokens_after": len(self.ids),
            "table_bytes_before": self.bytes_before,
            "table_bytes_after": self.bytes_after,
            "corpus_tokens": self.tokens,
            "corpus_unknown": self.unknown,
        }

    def rows_of(self, table: Tensor) -> Tensor:
        """Takes the rows of a table `[rows, dim]` that stay: `[len(ids), dim]`."""
        return table[torch.tensor(self.ids)]


def select(
    source: Path, model: Any, corpus: Sequence[str | Path], *, allow_pickle: bool = False, track: Track = silent
) -> Vocabulary:
    """Decides which tokens of a model stay.

    Args:
        source: the model's folder.
        model: the model's skeleton.
        corpus: files of texts, or folders of such; `select` reads them once, and `check` once more.
        allow_pickle: read pytorch_model.bin if there is no safetensors file.
        track: reports progress over texts.

    Raises:
        CheckpointError: the model has no token table, or no fast tokenizer of a known kind, or more tokens than the
            table has rows, or its positions would move.
        DataError: the corpus is empty or can't be read, or a third of its tokens is unknown to the tokenizer.
    """
    table = _token_table(source, model)
    files = tuple(corpus_files(corpus))
    tokenizer = load_tokenizer(source)
    backend = tokenizer.backend_tokenizer
    file = TokenizerFile.read(source, type(backend.model).__name__)
    known = backend.get_vocab(with_added_tokens=True)
    _check_room(source, tokenizer, known, table.num_embeddings)
    unknown = known.get(tokenizer.unk_token, -1)

    counts = np.zeros(table.num_embeddings, dtype=np.int64)
    kept = file.fixed() | {*backend.get_added_tokens_decoder(), *tokenizer.all_special_ids, *_named_ids(model)}
    stuck: set[str] = set()
    digests = []
    for batch in batches(track(inputs(source, files), "reading the corpus")):
        rows = encode(tokenizer, batch)
        digests.append(_digest(rows))
        counts += np.bincount(np.concatenate(rows), minlength=len(counts))
        if file.kind == "WordPiece":
            stuck.update(
                word for text, ids in zip(batch, rows, strict=True) if unknown in ids for word in words(tokenizer, text)
            )
    for word in stuck:
        kept |= file.stuck(word)
    special = [i for i in tokenizer.all_special_ids if i != unknown]
    tokens = int(counts.sum() - counts[special].sum())
    missed = int(counts[unknown]) if unknown >= 0 else 0
    if not tokens or missed > _UNKNOWN * tokens:
        share = missed / max(tokens, 1)
        raise DataError(
            f"{share:.0%} of the corpus is unknown to the tokenizer of {source}: {missed} of {tokens} tokens",
            hint="a vocabulary is trimmed to texts of the model's own languages",
        )
    kept = file.closure(kept | set(np.flatnonzero(counts).tolist()))
    ids = tuple(sorted(i for i in kept if 0 <= i < table.num_embeddings))
    _check_positions(model, table, ids)
    tables = frozenset(_names_of(model, table))
    with weights.open_shards(source, allow_pickle=allow_pickle) as shards:
        shard, key = _find(shards, model, tables)
        row_bytes = table.embedding_dim * weights.DTYPES[shard.dtype(key)].itemsize
    return Vocabulary(ids, table.num_embeddings, row_bytes, tables, files, tokens, missed, tuple(digests), file)


def write(vocabulary: Vocabulary, model: Any, folder: Path) -> list[str]:
    """Makes the tokenizer files and config.json of a folder agree with the trimmed table.

    Args:
        vocabulary: what stays.
        model: the source's skeleton.
        folder: an artifact in the making: the source's files, copied, with config.json written.

    Returns:
        A sentence for the user about each file that was dropped.
    """
    new = {old: i for i, old in enumerate(vocabulary.ids)}
    for name in ("config.json", "generation_config.json"):
        if not (folder / name).is_file():
            continue
        values = read_object(folder / name)
        for key, value in {**_token_ids(model.config.to_dict()), **_token_ids(values)}.items():
            moved = [new.get(i, i) for i in value] if isinstance(value, list) else new.get(value, value)
            if key in values or moved != value:
                values[key] = moved
        if name == "config.json":
            values["vocab_size"] = len(new)
        (folder / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    dropped = vocabulary.file.write(folder, new)
    return [f"dropped {name}, which can't be rewritten: tokenizer.json holds the trimmed tokenizer" for name in dropped]


def check(
    vocabulary: Vocabulary, source: Path, folder: Path, *, allow_pickle: bool = False, track: Track = silent
) -> None:
    """Checks that a trimmed artifact embeds the corpus as an artifact with the whole vocabulary does.

    The corpus, each text bare and behind the prompts, is split by the new tokenizer; the new ids, mapped back, must be
    the old ones. Special tokens must be what they were, and the row of every token must be the row it had.

    Raises:
        TernarizeError: tokens, ids or rows differ; the message names a token or a text.
        CheckpointError: config.json holds the size of the vocabulary in a place that `write` does not know.
    """
    small = checkpoint.skeleton(folder)
    if small.get_input_embeddings().num_embeddings != len(vocabulary.ids):
        raise CheckpointError(
            f"vocab_size in config.json does not size the token table of {source}; it can't be trimmed"
        )
    old, new = load_tokenizer(source), load_tokenizer(folder)
    ids = np.array(vocabulary.ids)
    _check_tokens(old, new, ids)
    texts = track(inputs(source, vocabulary.corpus), "checking the trimmed tokenizer")
    for batch, digest in zip(batches(texts), vocabulary.digests, strict=True):
        if _digest([ids[row] for row in encode(new, batch)]) != digest:
            _explain(batch, ids, old, new)
    before, after = (torch.tensor(column) for column in zip(*_pairs(old, new), strict=True))
    with weights.open_shards(source, allow_pickle=allow_pickle) as shards, weights.open_shards(folder) as written:
        (shard, key), (twin, name) = (_find(found, small, vocabulary.tables) for found in (shards, written))
        if not torch.equal(twin.get(name)[after], shard.get(key)[before].to(torch.float32)):
            raise TernarizeError(f"{name}: the trimmed table's rows are not those of its tokens")


def _check_tokens(old: Any, new: Any, ids: np.ndarray) -> None:
    """Special tokens are what they were, and characters that no piece fits are treated as they were."""
    changed = [kind for kind, token in old.special_tokens_map.items() if new.special_tokens_map.get(kind) != token]
    added = set(old.get_added_vocab().items())
    changed += [token for token, i in added - {(token, ids[i]) for token, i in new.get_added_vocab().items()}]
    if changed:
        raise TernarizeError(f"trimming changed {changed[0]}", hint="nothing was written; leave out --trim-vocabulary")
    for before, after in zip(encode(old, _PROBES), encode(new, _PROBES), strict=True):
        if np.isin(before, ids).all() and not np.array_equal(before, ids[after]):
            raise TernarizeError(
                "the trimmed tokenizer treats unknown characters differently",
                hint="nothing was written; leave out --trim-vocabulary",
            )


def _pairs(old: Any, new: Any) -> list[tuple[int, int]]:
    """The old and the new id of every token that stays."""
    known = old.get_vocab()
    return [(known[token], i) for token, i in new.get_vocab().items()]


def _token_table(source: Path, model: Any) -> nn.Embedding:
    table = input_table(model)
    if not isinstance(table, nn.Embedding):
        raise CheckpointError(f"{source} has no token table to trim", hint="--trim-vocabulary is for text encoders")
    return table


def _names_of(model: Any, table: nn.Embedding) -> Iterator[str]:
    """State-dict names of a table and of what is tied to it."""
    shared = {name for name, p in model.named_parameters(remove_duplicate=False) if p is table.weight}
    yield from shared
    for target, origin in getattr(model, "all_tied_weights_keys", {}).items():
        if {target, origin} & shared:
            yield from (target, origin)


def _check_room(source: Path, tokenizer: Any, known: dict[str, int], rows: int) -> None:
    beyond = {token: i for token, i in known.items() if i >= rows}
    if not beyond:
        return
    lost = [token for token in tokenizer.all_special_tokens if token in beyond]
    token = (lost or sorted(beyond, key=lambda t: beyond[t]))[0]
    what = "trimming would drop the special token" if lost else "the vocabulary is larger than the token table:"
    raise CheckpointError(
        f"{source}: {what} {token!r} has the id {beyond[token]}, and the table has {rows} rows",
        hint="the tokenizer and the model don't belong together; model.resize_token_embeddings mends it",
    )


def _check_positions(model: Any, table: nn.Embedding, ids: Sequence[int]) -> None:
    """RoBERTa's positions start behind the padding id, so there it must not move."""
    for name, module in model.named_modules():
        pad = module.padding_idx if isinstance(module, nn.Embedding) and module is not table else None
        if pad is not None and list(ids[pad : pad + 1]) != [pad]:
            raise CheckpointError(
                f"trimming would move the padding id {pad}, and with it all positions ({name})",
                hint="the tokens before the padding token are not special, and the corpus does not use them",
            )


def _token_ids(config: dict[str, Any]) -> dict[str, Any]:
    """The entries of a config that name tokens, such as pad_token_id."""
    found = {k: v for k, v in config.items() if k.endswith("_token_id")}
    return {k: v for k, v in found.items() if all(type(i) is int for i in (v if isinstance(v, list) else [v]))}


def _named_ids(model: Any) -> Iterator[int]:
    for value in _token_ids(model.config.to_dict()).values():
        yield from value if isinstance(value, list) else [value]


def _digest(rows: Sequence[np.ndarray]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(len(row).to_bytes(8, "little") + row.astype(np.int64).tobytes())
    return digest.digest()


def _explain(batch: Sequence[str], ids: np.ndarray, old: Any, new: Any) -> None:
    rows = (encode(tokenizer, batch) for tokenizer in (old, new))
    for text, before, after in zip(batch, *rows, strict=True):
        if not np.array_equal(before, ids[after]):
            raise TernarizeError(
                f"the trimmed tokenizer splits {text[:60]!r} into {new.convert_ids_to_tokens(after)[:12]}, "
                f"the original into {old.convert_ids_to_tokens(before)[:12]}",
                hint="nothing was written; leave out --trim-vocabulary",
            )
    raise TernarizeError("the corpus changed while it was read", hint="run it again")


def _find(
    shards: Sequence[weights.WeightShard], model: Any, tables: Collection[str]
) -> tuple[weights.WeightShard, str]:
    """The shard that holds the token table, and the table's name there."""
    for shard in shards:
        for key, name in checkpoint.names_in_model(model, shard.keys()).items():
            if name in tables:
                return shard, key
    raise CheckpointError("the files hold no token table", hint="fetch the whole model again")
