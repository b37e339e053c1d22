import numpy as np
from frame import QUERY, TEXTS, run
from sentence_transformers import SentenceTransformer


def store(model, folder):
    encoder = SentenceTransformer(model)
    vectors = encoder.encode_document(TEXTS)
    np.save(f"{folder}/vectors.npy", vectors)
    return vectors[0]


def reopen(model, folder):
    encoder = SentenceTransformer(model)
    similarities = encoder.similarity(encoder.encode_query(QUERY), np.load(f"{folder}/vectors.npy"))
    return TEXTS[int(similarities.argmax())]


run(store, reopen)
