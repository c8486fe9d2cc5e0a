"""Speech decoders, audio codes to waves, and the parts they share."""
