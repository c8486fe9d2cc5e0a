"""Whole checkpoints: what a folder is and whether its weights fit, and export for users of the public code."""
