"""Evaluation of models and codecs. Programs, run with `python -m`: run, prepare, evaluate_codec, compute_wer."""
