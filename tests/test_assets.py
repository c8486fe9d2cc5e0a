"""The weights that come with the package."""

from vita_audio.audio_tokenizers.glm4voice import EMBEDDED_DECODER, EMBEDDED_TOKENIZER

MOST_BYTES = 24_000_000  # speech tokenizer and decoder together, so that the repository stays small


def test_the_embedded_codec_is_small():
    sizes = [path.stat().st_size for folder in (EMBEDDED_TOKENIZER, EMBEDDED_DECODER) for path in folder.rglob("*.*")]
    assert len(sizes) >= 6 and sum(sizes) <= MOST_BYTES
