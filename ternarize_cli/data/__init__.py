"""Texts, images and tables of rows, from wherever users keep them, and in batches."""
