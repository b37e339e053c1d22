"""Enters models into MTEB's registry, so that `mteb.get_model` finds them by name and by path."""

import os
from pathlib import Path

from ternarize_cli.encoders.loading import load_encoder, model_name, resolve
from ternarize_cli.errors import CheckpointError
from ternarize_cli.evaluation.encoder import LocalEncoder
from ternarize_cli.evaluation.model_meta import model_meta
from ternarize_cli.storage.digests import content_hash

__all__ = ["register_in_mteb"]


def register_in_mteb(model: str | Path, *, backend: str = "auto", device: str | None = None) -> str:
    """Enters a model into MTEB's registry for the rest of this process.

        name = ternarize.register_in_mteb("my-model-packed")
        results = mteb.evaluate(mteb.get_model(name), tasks)

    MTEB then finds it by the returned name, and by `str(model)` unless it has a model of that name itself. It files its
    results under the returned name and the hash of the model's files, as `ternarize eval --results` does. A model of
    the same name that was entered before is replaced.

    Args:
        model: a folder, a hub id or `package:NAME`; an encoder of any stage, also in full precision.
        backend: the kernels that run a packed model's linears; `ternarize doctor` lists them.
        device: "cpu", "cuda" or "cuda:1"; None: as `ternarize.load` chooses. A device that is passed to
            `mteb.get_model` goes before it.

    Returns:
        The model's name in MTEB: "local/" and the name of its folder.

    Raises:
        ModelNotFoundError: nothing of that name can be found or downloaded.
        CheckpointError: the model's files are missing or damaged; from `mteb.get_model`: they have changed since.
        InputError: there is no such backend or device.
        UnavailableError: the backend or device can't run on this machine.
    """
    from mteb.models.model_implementations import MODEL_REGISTRY

    folder, short = resolve(model), model_name(model)
    digest = content_hash(folder)

    def load(
        name: str, revision: str | None, device: str | None = device, embed_dim: int | None = None
    ) -> LocalEncoder:
        # MTEB has compared `revision` and `embed_dim` with the registered ones, and describes the result itself
        if content_hash(folder) != digest:
            raise CheckpointError(f"{folder} has changed since it was registered", hint="register_in_mteb again")
        encoder = load_encoder(folder, backend=backend, device=device)
        return LocalEncoder(encoder, name=short, content_hash=digest)

    described = model_meta(folder, short, digest, load_encoder(folder, backend=backend, device=device))
    meta = described.model_copy(update={"loader": load})
    MODEL_REGISTRY[str(meta.name)] = meta
    if (
        getattr(MODEL_REGISTRY.get(os.fspath(model)), "name", meta.name) == meta.name
    ):  # and not MTEB's own entry of an id
        MODEL_REGISTRY[os.fspath(model)] = meta
    return str(meta.name)
