"""Puts what ternarize made onto the Hugging Face hub: `ternarize publish`."""
