from frame import QUERY, TEXTS, run
from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.embeddings.huggingface import HuggingFaceEmbedding


def store(model, folder):
    Settings.embed_model = HuggingFaceEmbedding(model_name=model)
    index = VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS])
    index.storage_context.persist(persist_dir=folder)
    return Settings.embed_model.get_text_embedding(TEXTS[0])


def reopen(model, folder):
    Settings.embed_model = HuggingFaceEmbedding(model_name=model)
    index = load_index_from_storage(StorageContext.from_defaults(persist_dir=folder))
    return index.as_retriever(similarity_top_k=1).retrieve(QUERY)[0].get_content()


run(store, reopen)
