"""Runs a model's tokenizer on texts, and reads and writes its files."""
