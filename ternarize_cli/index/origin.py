"""Where vectors come from: the model that made them, and how. Vector folders and indexes record it alike."""

from dataclasses import dataclass, fields
from typing import Any

__all__ = ["Origin"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What made some vectors.

    Attributes:
        model: MODEL as it was typed; model_path: the folder that it stood for; model_sha256: its content hash.
        kind: "text" or "image".
        normalized: whether the vectors were scaled to length 1, which makes the inner product the cosine.
        document_prompt, query_prompt: names of the model's prompts.
    """

    model: str
    model_path: str
    model_sha256: str
    kind: str
    normalized: bool
    document_prompt: str | None
    query_prompt: str | None

    @property
    def origin(self) -> dict[str, Any]:
        """The fields above, for another record of the same vectors."""
        return {field.name: getattr(self, field.name) for field in fields(Origin)}
