"""Training of the speech tokenizer, speech decoder and speech encoder of the small models, and of their corpus."""
