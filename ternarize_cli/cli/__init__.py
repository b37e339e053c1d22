"""Defines the command line: one file per command, which parses options, calls a library function and prints.

No module here imports torch or transformers at its top, so that `ternarize --help` answers at once.
"""
