"""One training stage: its flags, settings, data, model, Trainer, run folder, and evaluation of checkpoints."""
