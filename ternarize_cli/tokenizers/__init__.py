"""A model's tokenizer, as a function of texts and as files."""
