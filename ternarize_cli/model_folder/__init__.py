"""Checks a model's folder before anything in it is loaded: its files, their settings, and its digest. No torch."""
