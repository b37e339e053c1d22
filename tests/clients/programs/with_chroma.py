import chromadb
from chromadb.utils.embedding_functions import SentenceTransformerEmbeddingFunction
from frame import QUERY, TEXTS, run


def store(model, folder):
    embed = SentenceTransformerEmbeddingFunction(model_name=model)
    collection = chromadb.PersistentClient(path=folder).create_collection("texts", embedding_function=embed)
    collection.add(ids=[str(i) for i in range(len(TEXTS))], documents=TEXTS)
    return embed(TEXTS)[0]


def reopen(model, folder):
    collection = chromadb.PersistentClient(path=folder).get_collection("texts")  # it remembers the model's path
    return collection.query(query_texts=[QUERY], n_results=1)["documents"][0][0]


run(store, reopen)
