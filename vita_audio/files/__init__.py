"""Files and folders of weights: found, checked, read as tensors, and written atomically."""
