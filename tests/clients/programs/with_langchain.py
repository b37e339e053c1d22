from frame import QUERY, TEXTS, run
from langchain_chroma import Chroma
from langchain_huggingface import HuggingFaceEmbeddings


def store(model, folder):
    embeddings = HuggingFaceEmbeddings(model_name=model)
    Chroma(collection_name="texts", embedding_function=embeddings, persist_directory=folder).add_texts(TEXTS)
    return embeddings.embed_documents(TEXTS)[0]


def reopen(model, folder):
    embeddings = HuggingFaceEmbeddings(model_name=model)
    opened = Chroma(collection_name="texts", embedding_function=embeddings, persist_directory=folder)
    return opened.similarity_search(QUERY, k=1)[0].page_content


run(store, reopen)
