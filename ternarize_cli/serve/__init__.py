"""An embedding server: packed models behind HTTP, as OpenAI and text-embeddings-inference (TEI) offer theirs.

    ternarize serve my-packed --port 8080
    curl localhost:8080/v1/embeddings -d '{"model": "my-packed", "input": ["a text", "another one"]}'

    options.py       ServeOptions: what `ternarize serve` takes
    server.py        opens models and a socket, runs uvicorn, and ends gracefully
    connection.py    a connection, with bounds on what comes before a request
    hosts.py         the names that a server without a key is called by
    application.py   the ASGI application: paths, keys, bounds, errors
    openai_api.py    /v1/embeddings and /v1/models
    tei_api.py       /embed, /embed_all, /rerank, /predict, /tokenize, /info
    search_api.py    /search and /documents, if there is an index; index_folder.py opens one
    request.py       a request: its body within bounds, and whether its client still waits
    fields.py        the fields of a JSON body, checked
    inputs.py        texts, token ids and images of a request; image_urls.py reads data URLs
    answers.py       answers and errors, in the formats of both
    models.py        the models by name
    tasks.py         what can be computed for an item: a vector, vectors of tokens, scores
    batcher.py       the queue: items of many requests share a pass of the model; jobs.py is one request's part
    metrics.py       /metrics, in Prometheus' text format
    openapi.py       /openapi.json, and a page of it at /docs

The event loop reads, checks and writes; one thread tokenises and encodes. A model uses all processors for a pass, so
passes of several models take turns. A result never depends on what else is in its pass.

Nothing here may import torch or transformers: models run in `ternarize_cli.runtime`.
"""
