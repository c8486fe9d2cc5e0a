"""Open end-to-end speech-language models: training, decoding and evaluation."""

__version__ = "0.1.0"
