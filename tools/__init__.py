"""Programs: those for users are run as `python tools/NAME.py`, those in packages as `python -m tools.demo.NAME`."""
