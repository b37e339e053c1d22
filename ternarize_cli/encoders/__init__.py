"""Finds the folder of a model, checks it, and loads it as a running encoder with its ternary modules in place."""
