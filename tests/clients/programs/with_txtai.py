from frame import QUERY, TEXTS, run
from txtai import Embeddings


def store(model, folder):
    embeddings = Embeddings(path=model, method="sentence-transformers", content=True)
    embeddings.index(TEXTS)
    embeddings.save(f"{folder}/index")
    return embeddings.transform(TEXTS[0])


def reopen(model, folder):
    embeddings = Embeddings()
    embeddings.load(f"{folder}/index")
    return embeddings.search(QUERY, 1)[0]["text"]


run(store, reopen)
