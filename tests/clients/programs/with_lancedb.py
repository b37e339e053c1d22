import lancedb
from frame import QUERY, TEXTS, run
from lancedb.embeddings import get_registry
from lancedb.pydantic import LanceModel, Vector


def store(model, folder):
    encoder = get_registry().get("sentence-transformers").create(name=model, device="cpu")

    class Text(LanceModel):
        text: str = encoder.SourceField()
        vector: Vector(encoder.ndims()) = encoder.VectorField()

    table = lancedb.connect(folder).create_table("texts", schema=Text)
    table.add([{"text": text} for text in TEXTS])
    return table.to_arrow()["vector"][0].as_py()


def reopen(model, folder):
    return lancedb.connect(folder).open_table("texts").search(QUERY).limit(1).to_list()[0]["text"]


run(store, reopen)
