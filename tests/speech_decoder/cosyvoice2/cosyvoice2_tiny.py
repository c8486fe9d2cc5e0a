"""The tiny decoder of the CosyVoice 2 golden numbers."""

from pathlib import Path

from vita_audio.speech_decoder.cosyvoice2.decoder import CosyVoice2Decoder

ASSETS = Path(__file__).parents[2] / "assets" / "cosyvoice2"
FLOW_PARAMETERS, HIFT_PARAMETERS = 112_549_360, 20_821_295  # of the public classes at full size


def make_tiny_decoder() -> CosyVoice2Decoder:
    return CosyVoice2Decoder.from_pretrained(ASSETS)
