"""Share the transcript of a long recording among its clips, by what a recogniser hears in each of them."""

import re
from collections.abc import Sequence
from itertools import pairwise

from rapidfuzz.distance import Levenshtein

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"  # scripts without spaces between words
_WORD = re.compile(rf"([{_UNSPACED}])|[^\s{_UNSPACED}]+")


def share_transcript(transcript: str, heard: Sequence[str]) -> list[str]:
    """Return the part of a transcript that belongs to each clip; together they are the whole transcript.

    The words of all clips, one after the other, are aligned with those of the transcript with the fewest differences.
    Words that no clip has heard belong to the clip after them.

    Args:
        heard: What was heard in each clip, in order; errors are allowed.
    """
    words = _words(transcript)
    said = [[_spelling(match) for match in _words(text)] for text in heard]
    steps = Levenshtein.opcodes([word for clip in said for word in clip], [_spelling(match) for match in words])
    ends = [0]  # after as many words of the clips: number of words of the transcript
    for step in steps:
        for place in range(step.src_start, step.src_end):
            ends.append(min(step.dest_start + place + 1 - step.src_start, step.dest_end))
    starts, position = [0], 0
    for clip in said[:-1]:
        position += len(clip)
        end = ends[position]
        starts.append(words[end].start() if end < len(words) else len(transcript))
    return [transcript[start:stop].strip() for start, stop in pairwise([*starts, len(transcript)])]


def _words(text: str) -> list[re.Match[str]]:
    return [match for match in _WORD.finditer(text) if match[1] or re.search(r"\w", match[0])]


def _spelling(word: re.Match[str]) -> str:
    """Return the letters and digits of a word, in lower case."""
    return "".join(filter(str.isalnum, word[0].casefold()))
