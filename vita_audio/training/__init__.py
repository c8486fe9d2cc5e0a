"""One training stage: its arguments, model, data, Trainer and run folder."""
