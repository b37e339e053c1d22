"""Makes MTEB's description of a model from its files and from the loaded encoder.

MTEB has no field for a quantisation. It shows in three other fields: the memory of the stored weights, which MTEB also
counts for models of the hub; the number of weights, in which each packed weight counts; and the model that this one was
made from. Facts that the files don't hold, such as languages, licence and training data, stay unknown.
"""

from pathlib import Path
from typing import Any

from mteb.models import ModelMeta
from sentence_transformers import SentenceTransformer

from ternarize_cli.compress.skeleton_inspection import parameter_count
from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.anatomy import word_tables
from ternarize_cli.encoders.parts import parts_of
from ternarize_cli.encoders.vision import vector_width
from ternarize_cli.storage.weights import bytes_on_disk

__all__ = ["model_meta"]

_MB = 1024**2


def model_meta(
    folder: Path, name: str, digest: str, encoder: SentenceTransformer, *, allow_pickle: bool = False
) -> ModelMeta:
    """Makes the description of a model under which MTEB files its results.

    Args:
        folder: the model's folder.
        name: name of the model; "local" becomes the organisation that MTEB needs before it.
        digest: the content hash of the folder, which becomes the revision.
        encoder: the loaded model.
        allow_pickle: read pytorch_model.bin if there is no safetensors file.

    Raises:
        CheckpointError: the folder has no weights files.
    """
    artifact = checkpoint.artifact_of(folder)
    tables: list[Any] = [t for t in word_tables(encoder) if hasattr(t, "num_embeddings")]
    stored = sum(bytes_on_disk(part.path, allow_pickle=allow_pickle) for part in parts_of(folder))
    known = {
        "name": f"local/{name}",
        "revision": digest,
        "n_parameters": parameter_count(encoder, encoder.state_dict()) or None,
        "n_embedding_parameters": sum(t.num_embeddings * t.embedding_dim for t in tables) or None,
        "memory_usage_mb": round(stored / _MB, 3),
        "max_tokens": encoder.max_seq_length,
        "embed_dim": vector_width(encoder) or None,
        "open_weights": False,
        "framework": ["Sentence Transformers", "PyTorch", "safetensors"],
        "similarity_fn_name": encoder.similarity_fn_name,
        "use_instructions": any(encoder.prompts.values()),
        "adapted_from": (artifact.source or None) if artifact else None,
        "modalities": [m for m in encoder.modalities if m in ("text", "image")],
    }
    return ModelMeta.model_validate(ModelMeta.create_empty().model_dump() | known)
