import numpy as np
from datasets import Dataset
from frame import QUERY, TEXTS, run
from sentence_transformers import SentenceTransformer


def store(model, folder):
    encoder = SentenceTransformer(model)
    data = Dataset.from_dict({"text": TEXTS}).map(
        lambda rows: {"vector": encoder.encode(rows["text"])}, batched=True, batch_size=2
    )
    data.add_faiss_index("vector")
    data.save_faiss_index("vector", f"{folder}/vectors.faiss")
    data.drop_index("vector")
    data.save_to_disk(f"{folder}/data")
    return data[0]["vector"]


def reopen(model, folder):
    data = Dataset.load_from_disk(f"{folder}/data")
    data.load_faiss_index("vector", f"{folder}/vectors.faiss")
    query = SentenceTransformer(model).encode(QUERY).astype(np.float32)
    return data.get_nearest_examples("vector", query, k=1).examples["text"][0]


run(store, reopen)
