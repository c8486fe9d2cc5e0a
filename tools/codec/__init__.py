"""Training of a small speech tokenizer, speech decoder and speech encoder."""
