"""The language model: one decoder for Llama 3, Qwen2.5 and Qwen3, and its Hugging Face weights."""
