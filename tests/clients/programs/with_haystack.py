from frame import QUERY, TEXTS, run
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack_integrations.components.embedders.sentence_transformers import (
    SentenceTransformersDocumentEmbedder,
    SentenceTransformersTextEmbedder,
)


def store(model, folder):
    embedder = SentenceTransformersDocumentEmbedder(model=model)
    embedder.warm_up()
    documents = embedder.run([Document(content=text) for text in TEXTS])["documents"]
    documents_of = InMemoryDocumentStore(embedding_similarity_function="cosine")
    documents_of.write_documents(documents)
    documents_of.save_to_disk(f"{folder}/documents.json")
    return documents[0].embedding


def reopen(model, folder):
    pipeline = Pipeline()
    pipeline.add_component("embedder", SentenceTransformersTextEmbedder(model=model))
    pipeline.add_component(
        "retriever", InMemoryEmbeddingRetriever(InMemoryDocumentStore.load_from_disk(f"{folder}/documents.json"))
    )
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    return pipeline.run({"embedder": {"text": QUERY}})["retriever"]["documents"][0].content


run(store, reopen)
