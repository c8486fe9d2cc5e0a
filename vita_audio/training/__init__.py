"""Training of the stages: flags, packs, model, Trainer, the folder of a run, and evaluation of its checkpoints."""
