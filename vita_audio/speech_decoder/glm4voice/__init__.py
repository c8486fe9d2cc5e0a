"""The speech decoder of GLM-4-Voice: codes at 12.5 per second to 22,050 Hz."""
