"""The models that a server has, by name."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ternarize_cli.errors import counted, shown
from ternarize_cli.runtime import Encoder
from ternarize_cli.runtime.heads import Classifier, Reranker
from ternarize_cli.serve.answers import Fault, Refusal

__all__ = ["Model", "Models", "Served"]

Model = Encoder | Reranker | Classifier


@dataclass(frozen=True, eq=False)
class Served:
    """A model that is served.

    Attributes:
        name: the name that clients call it by.
        model: the model.
        sha256: the content hash of its folder, as `ternarize inspect` prints it: 64 hex digits.
        pooling: how an encoder makes one vector of the tokens of a text; "" if it is none.
        normalizes: whether it gives vectors length 1 itself.
        created: when it was opened, in seconds since 1970.
    """

    name: str
    model: Model
    sha256: str
    pooling: str = ""
    normalizes: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def summary(self) -> str:
        """What the model is, in a few words."""
        if isinstance(self.model, Encoder):
            return f"{self.name}: {' and '.join(sorted(self.model.reads))} encoder, {self.model.dim:,} dimensions"
        return f"{self.name}: {self.model.kind}, {counted(len(self.model.labels), 'label')}"

    @property
    def listed(self) -> dict[str, Any]:
        """The model as OpenAI lists one."""
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "ternarize"}

    @property
    def type(self) -> dict[str, Any]:
        """What the model is for, as text-embeddings-inference tells it."""
        if isinstance(self.model, Encoder):
            return {"embedding": {"pooling": self.pooling}}
        numbers = {label: i for i, label in enumerate(self.model.labels)}
        return {self.model.kind: {"id2label": {str(i): label for label, i in numbers.items()}, "label2id": numbers}}


class Models:
    """The models of a server, in the order in which they were given."""

    def __init__(self, models: Sequence[Served]) -> None:
        self.all: Mapping[str, Served] = {model.name: model for model in models}

    def named(self, name: str) -> Served:
        """Returns a model by its name.

        Raises:
            Refusal: there is none of that name.
        """
        found = self.all.get(name)
        if found is None:
            known = ", ".join(self.all)
            raise Refusal(Fault.NO_MODEL, f"there is no model {shown(name)} here, but: {known}", param="model")
        return found

    def encoder(self, name: str | None) -> tuple[Served, Encoder]:
        """Returns an encoder by its name, or the first one for None.

        Raises:
            Refusal: there is none of that name, or it is no encoder.
        """
        served = self._choose(name, "makes vectors", (Encoder,))
        assert isinstance(served.model, Encoder)
        return served, served.model

    def headed(self, name: str | None, *, ranks: bool) -> tuple[Served, Reranker | Classifier]:
        """Returns a reranker or classifier by its name, or the first one for None.

        Args:
            name: the name.
            ranks: whether it is to rank texts, for which it must give one score.

        Raises:
            Refusal: there is none of that name, or it has no head, or can't rank.
        """
        if ranks:
            served = self._choose(name, "ranks texts", (Reranker,))
            if not isinstance(served.model, Reranker) or len(served.model.labels) != 1:
                raise Refusal(Fault.WRONG_KIND, f"the model {served.name} gives no single score", param="model")
        else:
            served = self._choose(name, "classifies texts", (Classifier, Reranker))
        assert not isinstance(served.model, Encoder)
        return served, served.model

    def any(self, name: str | None) -> Served:
        """Returns a model by its name, or the first one for None.

        Raises:
            Refusal: there is none of that name.
        """
        return next(iter(self.all.values())) if name is None else self.named(name)

    def _choose(self, name: str | None, what: str, kinds: tuple[type[Model], ...]) -> Served:
        if name is None:
            for kind in kinds:
                for served in self.all.values():
                    if isinstance(served.model, kind):
                        return served
            raise Refusal(Fault.WRONG_KIND, f"no model here {what}", param="model")
        served = self.named(name)
        if not isinstance(served.model, kinds):
            a = "an" if served.model.kind[0] in "aeiou" else "a"
            raise Refusal(
                Fault.WRONG_KIND, f"{name} is {a} {served.model.kind}, and not one that {what}", param="model"
            )
        return served
