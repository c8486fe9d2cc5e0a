"""The speech decoder of GLM-4-Voice: 12.5 codes per second to a wave at 22,050 Hz."""
