"""Encoders: from MODEL to a folder, to a checked skeleton, to a running encoder with our modules in place."""
