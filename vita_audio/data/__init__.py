"""Training data: audio files to waves and codes, conversations to token ids, mixtures of files to packs and batches."""
