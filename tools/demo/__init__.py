"""The quick start and what it is made of: corpus, text tokenizer, text model, report and ablations."""
