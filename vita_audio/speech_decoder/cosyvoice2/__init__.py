"""The speech decoder of CosyVoice 2: 25 codes per second to a wave at 24 kHz."""
