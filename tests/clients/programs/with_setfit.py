import numpy as np
from frame import QUERY, TEXTS, run
from setfit import SetFitModel

LABELS = [0, 0, 0, 1, 1, 1]


def store(model, folder):
    classifier = SetFitModel.from_pretrained(model)
    vectors = classifier.model_body.encode(TEXTS)
    classifier.model_head.fit(vectors, LABELS)
    classifier.save_pretrained(f"{folder}/classifier")
    np.save(f"{folder}/predicted.npy", classifier.predict_proba(TEXTS))
    return vectors[0]


def reopen(model, folder):
    classifier = SetFitModel.from_pretrained(f"{folder}/classifier")
    assert np.array_equal(classifier.predict_proba(TEXTS), np.load(f"{folder}/predicted.npy"))
    return TEXTS[LABELS.index(int(classifier.predict([QUERY])[0]))]


run(store, reopen)
