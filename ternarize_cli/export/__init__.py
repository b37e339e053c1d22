"""Writes packed models in forms that run without ternarize: `ternarize export MODEL --to FORMAT`.

session.py        `export`: finds the model, checks it, and lets a format write it
formats.py        the registry of formats; a format is a file with a class under `@register`
options.py        what formats can be asked for
source.py         the model that is exported, with its licence and content hash
libraries.py      the compiled library for a platform
licences.py       the licences of the model and of ternarize; card.py has what the READMEs of all formats share

wheel.py          a wheel for pip; wheel_file.py writes the archive, vendoring.py gathers the runtime's files,
                  carried/ is what a wheel has beside these; wheel_card.py writes its README, dockerfile.py a Dockerfile
c.py              a folder for C; weights_file.py writes the weights
onnx.py           a folder for ONNX Runtime; openvino.py one for OpenVINO. onnx_graph.py makes the graph of both, and
                  graph_folder.py the folder around it
gguf.py           a folder for llama.cpp; gguf_architectures.py and gguf_tensors.py describe the model, gguf_blocks.py
                  lays its codes out, gguf_vocabulary.py describes its tokenizer, gguf_runtime.py runs it
dense.py          a checkpoint in floating point; compressed_tensors.py one with integers of 2 bits, and
                  in_transformers.py writes both
companions.py     what such a folder holds beside the weights; export_folder.py writes its last files, export.json with
                  digests among them; check.py compares it with the packed model in its
                  runtime, by what nearness.py measures
"""
