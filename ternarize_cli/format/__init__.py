"""The format of artifacts: the quantisation scheme, and the codecs that pack codes into bytes."""
