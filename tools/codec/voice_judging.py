"""Judge a decoder's voice: how well a recogniser understands it, and how much it sounds like the wanted speaker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evaluation.judges import NO_SIMILARITY, Judge, Sound, SpeakerSimilarity, get_judge, is_audible
from evaluation.metrics.ours import corrected_error_rate
from evaluation.metrics.score import Score
from evaluation.metrics.significance import confidence_interval

if TYPE_CHECKING:
    import numpy as np

    from vita_audio.speech_decoder.glm4voice.decoder import SpeechDecoder
    from vita_audio.speech_decoder.streaming import FlowVoice


@dataclass(frozen=True)
class Verdict:
    """What the judges say about several sounds.

    Attributes:
        wer: Word errors of each sound.
        likeness: Cosine similarity of each sound to the wanted speaker.
        transcripts: What the recogniser heard.
    """

    wer: Score
    likeness: Score
    transcripts: list[str]

    @property
    def score(self) -> float:
        """Return the number by which decoders are compared, at most 1: likeness less word error rate."""
        return self.likeness.value - self.wer.value

    def summary(self) -> dict[str, Any]:
        """Return the values with their 95 % intervals, for JSON."""
        return {
            "sounds": len(self.wer),
            "wer": self.wer.value,
            "wer_interval": list(confidence_interval(self.wer)),
            "likeness": self.likeness.value,
            "likeness_interval": list(confidence_interval(self.likeness, is_share=False)),
            "score": self.score,
        }


class VoiceJudge:
    """A recogniser and a speaker encoder."""

    def __init__(self, recogniser: Judge, similarity: SpeakerSimilarity):
        self.recogniser, self._similarity = recogniser, similarity

    @classmethod
    def load(cls, judge: str, language: str, num_threads: int | None = None) -> VoiceJudge:
        """Load both; arguments and errors as in `get_judge` and `SpeakerSimilarity`."""
        return cls(get_judge(judge, num_threads, language=language), SpeakerSimilarity())

    def speaker(self, speech: Sound) -> np.ndarray:
        """Return the speaker of some sentences, (256,), for `judge`."""
        return self._similarity.embed(speech)

    def judge(self, sounds: Sequence[Sound], texts: Sequence[str], speaker: np.ndarray) -> Verdict:
        """Return the verdict about sounds that should say `texts` in the voice of `speaker`."""
        transcripts = self.recogniser.transcribe(sounds)
        wer = corrected_error_rate(texts, transcripts, language=self.recogniser.language)
        return Verdict(wer, Score.of_mean([self._likeness(sound, speaker) for sound in sounds]), transcripts)

    def _likeness(self, sound: Sound, speaker: np.ndarray) -> float:
        return float(self._similarity.embed(sound) @ speaker) if is_audible(sound) else NO_SIMILARITY


def speak(decoder: SpeechDecoder, pieces: Sequence[Sequence[int]], voice: FlowVoice | None = None) -> list[Sound]:
    """Return the sound of each sequence of codes, in the decoder's own voice or that of a prompt."""
    return [(decoder.decode(codes, voice), decoder.sample_rate) for codes in pieces]
