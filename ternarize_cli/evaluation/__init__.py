"""How much of a teacher's quality a student keeps, measured with MTEB's own metrics on local files.

`reading` (with `retrieval`, `neighbours` and `lines`) turns files into data and says what is wrong with them; `tasks`
makes MTEB tasks of the data; `encoder` shows a model to MTEB; `compare` runs the tasks and sets the student against the
teacher; `gates` decides whether what it keeps is enough. Nothing is imported here: reading is quick, importing MTEB
takes seconds.
"""
