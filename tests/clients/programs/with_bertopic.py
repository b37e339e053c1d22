from bertopic import BERTopic
from frame import QUERY, TEXTS, run
from sentence_transformers import SentenceTransformer
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA


def store(model, folder):
    embedder = SentenceTransformer(model)
    vectors = embedder.encode(TEXTS)
    topics = BERTopic(
        embedding_model=embedder,
        umap_model=PCA(n_components=2, random_state=0),
        hdbscan_model=KMeans(n_clusters=3, random_state=0, n_init=3),
    )
    topics.fit(TEXTS * 4)
    topics.save(f"{folder}/topics", serialization="safetensors", save_embedding_model=model)
    return vectors[0]


def reopen(model, folder):
    topics = BERTopic.load(f"{folder}/topics")
    found, _ = topics.transform([QUERY, TEXTS[0]])
    return TEXTS[0] if found[0] == found[1] else str(found)


run(store, reopen)
