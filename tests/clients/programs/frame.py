"""What the programs share: texts, a question, and how a program is called and answers.

python with_CLIENT.py store MODEL FOLDER      encodes and stores TEXTS; the answer is the first text's vector
python with_CLIENT.py reopen MODEL FOLDER     opens what was stored; the answer is the text that fits QUERY
"""

import json
import sys

TEXTS = [
    "The trains to the coast run every hour on weekdays.",
    "A ticket for the night train costs more than one for the day.",
    "Passengers change trains at the central station.",
    "Bake the bread until its crust is brown.",
    "Add salt to the soup before it boils.",
    "The river rose after three days of rain.",
]
QUERY = "How often does the train go to the coast?"


def run(store, reopen):
    step, model, folder = sys.argv[1:]
    answer = store(model, folder) if step == "store" else reopen(model, folder)
    answer = answer if isinstance(answer, str) else [float(value) for value in answer]
    print("\n" + json.dumps({"answer": answer}))
