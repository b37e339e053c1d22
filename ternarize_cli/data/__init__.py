"""Reads texts, images and tables of rows from users' files and from the hub, and groups them into batches."""
