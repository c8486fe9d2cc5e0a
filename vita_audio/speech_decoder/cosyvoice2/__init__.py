"""The speech decoder of CosyVoice 2: codes at 25 per second to 24 kHz."""
