"""Reads models that others have quantised to few bits, so that `pack` makes packed models of them, values unchanged.

coded.py                what such a file holds: matrices of codes with scales
bitnet.py               method "bitnet" of transformers
compressed_tensors.py   method "compressed-tensors", format `pack-quantized`
torchao.py              method "torchao", integers of the class IntxUnpackedToInt8Tensor
ternary_checkpoint.py   writes them as a ternary checkpoint, which `pack` takes
"""
