"""Measures how much of a teacher's quality a student keeps, with MTEB's metrics, on local files or MTEB's tasks.

`reading` (with `retrieval`, `neighbours` and others) reads files and checks them; `tasks` makes MTEB tasks of the data;
`encoder` wraps a model for MTEB; `compare` runs the tasks and compares the student with the teacher; `gates` decides
whether the retention is enough. This module imports nothing, because reading files is quick, and importing MTEB takes
seconds.
"""
