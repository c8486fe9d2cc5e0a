"""Evaluation of trained models: benchmarks, third-party judges, metrics, reports. Run its programs with `python -m`."""
