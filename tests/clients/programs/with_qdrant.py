from frame import QUERY, TEXTS, run
from qdrant_client import QdrantClient, models
from sentence_transformers import SentenceTransformer


def store(model, folder):
    encoder, client = SentenceTransformer(model), QdrantClient(path=folder)
    vectors = encoder.encode(TEXTS)
    client.create_collection(
        "texts",
        vectors_config=models.VectorParams(size=encoder.get_embedding_dimension(), distance=models.Distance.COSINE),
    )
    client.upload_points(
        "texts",
        [
            models.PointStruct(id=i, vector=vector.tolist(), payload={"text": text})
            for i, (text, vector) in enumerate(zip(TEXTS, vectors, strict=True))
        ],
    )
    client.close()
    return vectors[0]


def reopen(model, folder):
    client = QdrantClient(path=folder)
    query = SentenceTransformer(model).encode(QUERY).tolist()
    found = client.query_points("texts", query=query, limit=1).points[0].payload["text"]
    client.close()
    return found


run(store, reopen)
