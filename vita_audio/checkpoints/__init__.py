"""Whole checkpoints: inspect a folder before loading it, and export one for the public VITA-Audio code."""
