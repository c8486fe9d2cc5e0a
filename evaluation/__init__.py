"""Measuring trained models: judges that listen, metrics, the demo evaluation. Run its parts with `python -m`."""
