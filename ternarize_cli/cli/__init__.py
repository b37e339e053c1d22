"""The command line: one file per command, each parses, calls one library function, prints.

Nothing here imports torch or transformers at the top, so that `ternarize --help` answers at once.
"""
