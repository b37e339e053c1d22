"""A model's folder, before anything in it is loaded: its files, what they may ask for, and their digest. No torch."""
