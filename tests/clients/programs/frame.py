"""What the programs share: texts, a question, and how a program is called and answers.

    python with_CLIENT.py MODEL FOLDER [store|reopen]

imports the client, and does one or both steps, each in a process that has done nothing before but import. `store`
encodes and stores TEXTS, and answers with the first text's vector; `reopen` opens what was stored, and answers with the
text that fits QUERY.
"""

import json
import os
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
    model, folder, *named = sys.argv[1:]
    for step in (store, reopen):
        if named not in ([], [step.__name__]):
            continue
        process = os.fork()
        if not process:
            answer = step(model, folder)
            answer = answer if isinstance(answer, str) else [float(value) for value in answer]
            print("\n" + json.dumps({"answer": answer}), flush=True)
            os._exit(0)
        if os.waitpid(process, 0)[1] != 0:
            sys.exit(f"{step.__name__} failed")
