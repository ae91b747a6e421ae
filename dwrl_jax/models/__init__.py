"""The language model: one decoder for all families, and its Hugging Face weights."""
