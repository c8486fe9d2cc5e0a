"""Evaluation of trained models: benchmarks, third-party judges, metrics and reports. Run its programs with `python -m`."""
