"""What a model's wheel carries beside the runtime, which is copied into it with the runtime (`vendoring`).

place.py      where the wheel's files lie
model.py      the model as functions: encode, score, classify
command.py    the command: texts or images in, lines of JSON out; check.py compares results for --check
server.py     the server, which needs the wheel's extra `serve`
files.py      takes the place of storage/files.py, which needs more than a wheel does

NAME/
    __init__.py     the names of model.py that belong to the model
    about.json      the kind of the model, and what --check compares
    model/          the packed model
    _runtime/       ternarize_cli, as far as it is needed: this file is NAME/_runtime/export/carried/__init__.py
"""
