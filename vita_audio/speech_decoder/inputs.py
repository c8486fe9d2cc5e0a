"""Checks of codes and voices that all decoders share."""

from collections.abc import Sequence
from operator import index

from torch import Tensor


def check_codes(codes: Sequence[int], vocab_size: int) -> list[int]:
    """Return `codes` as a list of int.

    Raises: TypeError if one is not an integer, ValueError if one is not in 0..vocab_size - 1.
    """
    codes = [index(code) for code in codes]
    if wrong := [code for code in codes if not 0 <= code < vocab_size]:
        raise ValueError(f"audio codes must be in 0..{vocab_size - 1}, got {len(wrong)} others such as {wrong[:5]}")
    return codes


def check_voice(
    codes: Sequence[int] | None, mel: Tensor | None, embedding: Tensor | None, *, num_bands: int, embedding_size: int
) -> None:
    """Check the parts of a voice, each of which may be None.

    Args:
        codes: Codes of a recording of the speaker.
        mel: Log-mel of the same recording, (num_bands, frames); codes and mel are given together.
        embedding: Speaker embedding, (embedding_size,).
    Raises: ValueError.
    """
    if (codes is None) != (mel is None):
        raise ValueError("a voice prompt needs prompt_codes and prompt_mel; give both or neither")
    if mel is not None and (mel.ndim != 2 or mel.shape[0] != num_bands):
        raise ValueError(f"prompt_mel must have shape ({num_bands}, frames), got {tuple(mel.shape)}")
    if embedding is not None and embedding.shape != (embedding_size,):
        raise ValueError(f"a speaker embedding must have shape ({embedding_size},), got {tuple(embedding.shape)}")
