"""Turns MODEL into a folder, a checked skeleton, and a running encoder with ternary modules in place."""
