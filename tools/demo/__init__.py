"""The quick start: the corpus, text model, plan and reports of a small model trained through all stages."""
