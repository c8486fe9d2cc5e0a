"""Files without knowledge of the models: checkpoint folders, weight files, and files written atomically."""
