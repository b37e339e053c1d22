from frame import TEXTS, run
from keybert import KeyBERT
from sentence_transformers import SentenceTransformer


def store(model, folder):
    keywords = KeyBERT(model=SentenceTransformer(model))
    vectors, _ = keywords.extract_embeddings(TEXTS)
    return vectors[0]


def reopen(model, folder):
    found = KeyBERT(model=model).extract_keywords(TEXTS[0], keyphrase_ngram_range=(1, 1), top_n=3)
    assert len(found) == 3, found
    return TEXTS[0] if all(word in TEXTS[0].lower() for word, _ in found) else str(found)


run(store, reopen)
