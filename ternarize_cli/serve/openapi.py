"""The description of the API in OpenAPI's format, and a page of it that needs no script."""

from collections.abc import Mapping
from html import escape
from typing import Any

import orjson

from ternarize_cli import __version__
from ternarize_cli.serve.service import Service

__all__ = ["docs_page", "openapi_document"]

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_VECTOR: Schema = {"type": "array", "items": _NUMBER}
_IDS: Schema = {"type": "array", "items": _COUNT, "minItems": 1}


def openapi_document(service: Service, *, with_index: bool = False) -> dict[str, Any]:
    """Makes the OpenAPI document of a server.

    Args:
        service: the models and the bounds that it describes.
        with_index: whether the server has an index of texts.
    """
    names = list(service.models.all)
    bodies = _bodies(service) | (_index_bodies(service) if with_index else {})
    schemas = {name: _described(fields, names) for name, fields in bodies.items()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ternarize serve",
            "version": __version__,
            "description": f"Models: {', '.join(names)}. Embeddings in the formats of OpenAI and of "
            "text-embeddings-inference.",
        },
        "paths": _paths() | (_index_paths() if with_index else {}),
        "components": {
            "schemas": {**schemas, **_ERRORS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [] if service.options.api_key is None else [{"key": []}],
    }


def _bodies(service: Service) -> dict[str, dict[str, tuple[Schema, str]]]:
    """Lists the fields of each kind of body; those whose description begins with `*` are required."""
    most = service.options.max_client_batch_size
    inputs: Schema = {
        "oneOf": [
            _TEXT,
            _IDS,
            _some({"oneOf": [_TEXT, _IDS]}, most),
        ]
    }
    what = (
        "*A text, a list of token ids of the model, or a list of texts and lists of token ids; images as "
        "data:image/TYPE;base64,…"
    )
    one_or_two = _some(_TEXT, 2)
    model = (_TEXT, "The model; by default the first that can answer.")
    prompt = (_TEXT, "A prompt that the model keeps, such as query; by default the model's own default.")
    truncate = (_FLAG | {"default": True}, "Cut texts with too many tokens; otherwise they are refused.")
    raw = (
        _FLAG | {"default": False},
        "Scores as the model's head gives them. Otherwise one score gets a sigmoid, and several get a softmax, as in "
        "text-embeddings-inference, whatever activation the model's config names.",
    )
    return {
        "EmbeddingsRequest": {
            "input": (inputs, what),
            "model": model,
            "encoding_format": (
                {"enum": ["float", "base64"], "default": "float"},
                "base64 is of little-endian float32.",
            ),
            "dimensions": (_COUNT | {"minimum": 1}, "Leading dimensions that are kept; vectors then get length 1."),
            "user": (_TEXT, "Not read."),
        },
        "EmbedRequest": {
            "inputs": (inputs, what),
            "model": model,
            "normalize": (_FLAG | {"default": True}, "Give vectors length 1."),
            "truncate": truncate,
            "prompt_name": prompt,
            "dimensions": (_COUNT | {"minimum": 1}, "Leading dimensions that are kept."),
        },
        "EmbedAllRequest": {"inputs": (inputs, what), "model": model, "truncate": truncate, "prompt_name": prompt},
        "RerankRequest": {
            "query": (_TEXT, "*The query."),
            "texts": (_some(_TEXT, most), "*Texts to rank."),
            "model": model,
            "truncate": truncate,
            "raw_scores": raw,
            "return_text": (_FLAG | {"default": False}, "Repeat the texts in the answer."),
        },
        "PredictRequest": {
            "inputs": (
                {"oneOf": [_TEXT, one_or_two, _some(one_or_two, most)]},
                '*A text; a pair, ["a", "b"]; or a list of lists of one or two texts.',
            ),
            "model": model,
            "truncate": truncate,
            "raw_scores": raw,
        },
        "TokenizeRequest": {
            "inputs": ({"oneOf": [_TEXT, _some(_TEXT, most)]}, "*A text, or a list of texts."),
            "model": model,
            "add_special_tokens": (_FLAG | {"default": True}, "List special tokens, too."),
            "prompt_name": prompt,
        },
    }


def _some(items: Schema, most: int) -> Schema:
    """Describes a list of 1 to `most` elements."""
    return {"type": "array", "items": items, "minItems": 1, "maxItems": most}


_ERRORS: dict[str, Schema] = {
    "OpenAiError": {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    },
    "TeiError": {"type": "object", "properties": {"error": _TEXT, "error_type": _TEXT}},
}
_USAGE: Schema = {"type": "object", "properties": {"prompt_tokens": _COUNT, "total_tokens": _COUNT}}
_EMBEDDING: Schema = {
    "type": "object",
    "properties": {
        "object": {"const": "embedding"},
        "index": _COUNT,
        "embedding": {"oneOf": [_VECTOR, _TEXT | {"format": "byte"}]},
    },
}
_LIST: Schema = {
    "type": "object",
    "properties": {
        "object": {"const": "list"},
        "data": {"type": "array", "items": _EMBEDDING},
        "model": _TEXT,
        "usage": _USAGE,
    },
}
_RANK: Schema = {"type": "object", "properties": {"index": _COUNT, "score": _NUMBER, "text": _TEXT}}
_SCORE: Schema = {"type": "object", "properties": {"score": _NUMBER, "label": _TEXT}}
_PLACE: Schema = {"type": ["integer", "null"], "description": "A place in the text, in bytes of UTF-8."}
_TOKEN: Schema = {
    "type": "object",
    "properties": {"id": _COUNT, "text": _TEXT, "special": _FLAG, "start": _PLACE, "stop": _PLACE},
}
_STATUSES = {
    "OpenAiError": (400, 401, 403, 404, 408, 413, 415, 429, 500),
    "TeiError": (400, 401, 403, 404, 408, 413, 415, 422, 424, 429),
}
"""The statuses of errors, by their schema."""


def _list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def _paths() -> dict[str, Any]:
    either = {"oneOf": [_list_of(_SCORE), _list_of(_list_of(_SCORE))]}
    embeddings = _post("Vectors, as OpenAI's API gives them.", "EmbeddingsRequest", _LIST, error="OpenAiError")
    return {
        "/v1/embeddings": embeddings,
        "/embeddings": embeddings,
        "/v1/models": _get("The models.", {"type": "object"}),
        "/v1/models/{name}": _get("A model.", {"type": "object"}, name="path"),
        "/embed": _post("Vectors, a list for each input.", "EmbedRequest", _list_of(_VECTOR)),
        "/embed_all": _post("A vector of each token.", "EmbedAllRequest", _list_of(_list_of(_VECTOR))),
        "/rerank": _post("Scores of texts for a query, best first.", "RerankRequest", _list_of(_RANK)),
        "/predict": _post("Scores of labels, best first.", "PredictRequest", either),
        "/tokenize": _post("The tokens of texts.", "TokenizeRequest", _list_of(_list_of(_TOKEN))),
        "/info": _get("A model, and the bounds of this server.", {"type": "object"}, model="query"),
        "/health": _get("200 if all is well."),
        "/metrics": _get("Counts, in Prometheus' text format."),
    }


def _index_bodies(service: Service) -> dict[str, dict[str, tuple[Schema, str]]]:
    some = _some(_TEXT, service.options.max_client_batch_size)
    texts: Schema = {"oneOf": [_TEXT, some]}
    return {
        "SearchRequest": {
            "query": (texts, "*A query, or a list of queries."),
            "k": (_COUNT | {"minimum": 1, "default": 10}, "The most documents that are found for a query."),
            "with_text": (_FLAG | {"default": True}, "Answer with the texts of documents, too."),
        },
        "DocumentsRequest": {"ids": (some, "*Ids of documents.")},
    }


def _index_paths() -> dict[str, Any]:
    document = {"type": "object", "properties": {"id": _TEXT, "text": _TEXT}}
    hit = {"type": "object", "properties": {"id": _TEXT, "score": _NUMBER, "text": _TEXT}}
    hits = {"oneOf": [_list_of(hit), _list_of(_list_of(hit))]}
    found = {"type": "object", "properties": {"documents": _list_of(document), "missing": _list_of(_TEXT)}}
    listed = {"type": "object", "properties": {"count": _COUNT, "documents": _list_of(document)}}
    answer = {"type": "object", "properties": {"results": hits}}
    return {
        "/search": _post("Documents for a query, best first.", "SearchRequest", answer),
        "/documents": _get("Documents in the order of the index.", listed, offset="query", limit="query")
        | _post("Documents by their ids.", "DocumentsRequest", found),
    }


def _described(fields: Mapping[str, tuple[Schema, str]], models: list[str]) -> Schema:
    return {
        "type": "object",
        "properties": {
            name: schema | {"description": text.lstrip("*")} | ({"examples": models} if name == "model" else {})
            for name, (schema, text) in fields.items()
        },
        "required": [name for name, (_, text) in fields.items() if text.startswith("*")],
    }


def _post(summary: str, body: str, answer: Schema, *, error: str = "TeiError") -> Schema:
    def content(schema: Schema) -> Schema:
        return {"application/json": {"schema": schema}}

    failed = {"description": "An error.", "content": content({"$ref": f"#/components/schemas/{error}"})}
    responses = {
        "200": {"description": summary, "content": content(answer)},
        **{str(n): failed for n in _STATUSES[error]},
    }
    request = {"required": True, "content": content({"$ref": f"#/components/schemas/{body}"})}
    return {"post": {"summary": summary, "requestBody": request, "responses": responses}}


def _get(summary: str, answer: Schema | None = None, **parameters: str) -> Schema:
    content = {} if answer is None else {"content": {"application/json": {"schema": answer}}}
    listed = [{"name": n, "in": place, "required": place == "path", "schema": _TEXT} for n, place in parameters.items()]
    return {
        "get": {"summary": summary, "parameters": listed, "responses": {"200": {"description": summary, **content}}}
    }


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "code,pre{font-family:ui-monospace,monospace;font-size:.9em}pre{background:#8882;padding:.7em;overflow:auto}"
    "table{border-collapse:collapse}td{padding:.15em 1em .15em 0;vertical-align:top}h2{margin-top:2em}"
    ":root{color-scheme:light dark}"
)


def docs_page(document: Mapping[str, Any]) -> str:
    """Makes an HTML page of an OpenAPI document; it loads nothing and has no script."""
    schemas, parts = document["components"]["schemas"], []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>")
            if body := operation.get("requestBody"):
                name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
                parts.append(_table(schemas[name]) + _example(path, schemas[name]))
    about = escape(document["info"]["description"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>ternarize serve</title><style>{_STYLE}</style>'
        f"<h1>ternarize serve {escape(document['info']['version'])}</h1><p>{about} "
        f'The same as <a href="/openapi.json">openapi.json</a>.</p>{"".join(parts)}</html>'
    )


def _table(schema: Schema) -> str:
    rows = (
        f"<tr><td><code>{escape(name)}</code></td><td>{'required' if name in schema['required'] else ''}</td>"
        f"<td>{escape(field['description'])}</td></tr>"
        for name, field in schema["properties"].items()
    )
    return f"<table>{''.join(rows)}</table>"


def _example(path: str, schema: Schema) -> str:
    values = {"texts": ["a text", "another one"], "query": "a question", "ids": ["doc-1", "doc-2"]}
    body = {name: values.get(name, "a text") for name in schema["required"]}
    command = f"curl localhost:8080{path} -H 'Content-Type: application/json' -d '{orjson.dumps(body).decode()}'"
    return f"<pre>{escape(command)}</pre>"
