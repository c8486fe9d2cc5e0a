"""From a folder of recordings to a model that speaks like them, with one command."""
