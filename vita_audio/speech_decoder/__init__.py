"""Audio codes to waves: the parts that the decoders of GLM-4-Voice and CosyVoice 2 share, and one package for each."""
