"""Metrics of speech codecs: bits, use of the codes, distance of mels, words heard wrong, predicted opinions.

Clips of one text are one sample of an interval: several renderings of a sentence say little more than one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.metrics.ours import (
    code_counts,
    codebook_perplexity,
    corrected_error_rate,
    digit_error_rate,
    digits_of,
)
from evaluation.metrics.score import Score
from evaluation.metrics.significance import compare, confidence_interval

if TYPE_CHECKING:
    from evaluation.evaluate_codec import Clip
    from evaluation.judges import Judge, Sound
    from vita_audio.audio_tokenizers import AudioTokenizer


def code_metrics(codes: Sequence[Sequence[int]], tokenizer: AudioTokenizer) -> dict[str, float]:
    """Return the bit rate of the codec, the entropy rate of these codes, and how many different codes occur."""
    perplexity = codebook_perplexity(codes, tokenizer.vocab_size)
    return {
        "codes_per_second": tokenizer.frame_rate,
        "bits_per_second": tokenizer.frame_rate * tokenizer.bits_per_code,
        "bits_per_second_used": tokenizer.frame_rate * math.log2(perplexity / tokenizer.codes_per_group),
        "codebook_size": tokenizer.vocab_size,
        "codes_used": int((code_counts(codes, tokenizer.vocab_size) > 0).sum()),
        "codebook_perplexity": perplexity,
    }


def training_code_metrics(store: Path, mixture: Path, tokenizer: AudioTokenizer, *, all_roles: bool) -> dict[str, Any]:
    """Return the use of the codebook in training data, which has enough codes to tell.

    Args:
        store: Folder of the code store.
        mixture: Training mixture, a yaml file.
        all_roles: Whether the speech of all roles enters the model as codes; False: the assistant's only.
    """
    from vita_audio.data.codes import AudioCodeStore
    from vita_audio.data.mixture import load_mixture, referenced_audio
    from vita_audio.text import ROLES

    paths = referenced_audio(load_mixture(mixture), ROLES if all_roles else ("assistant",))
    codes = AudioCodeStore(store, tokenizer.fingerprint, read_only=True)
    return {
        "codebook_size": tokenizer.vocab_size,
        "codebook_perplexity": codebook_perplexity(map(codes.codes, paths), tokenizer.vocab_size),
    }


def judged_metrics(
    clips: Sequence[Clip], judge: Judge, decoded: Sequence[Sound], heard_originals: Sequence[str]
) -> dict[str, Any]:
    """Return the WER after the codec; with written texts also the WER before it and the rise.

    English texts that all have digits have the same figures of their digits. Intervals are 95 %; the rise is resampled
    in pairs.
    """
    heard = judge.transcribe(decoded, progress="judging decoded")
    written = [clip.text for clip in clips if clip.text is not None]
    texts = written or list(heard_originals)

    def rate(transcripts: Sequence[str]) -> Score:
        return corrected_error_rate(texts, transcripts, language=judge.language).grouped(texts)

    return {
        **_rates("wer", rate(heard), rate(heard_originals) if written else None),
        **(_digit_metrics(written, heard, heard_originals) if judge.language == "en" else {}),
        "generated": [
            {
                "wav": f"{clip.name}.wav",
                "original_wav": str(clip.path),
                "reference_text": text,
                "transcript": transcript,
                "original": original,
            }
            for clip, text, transcript, original in zip(clips, texts, heard, heard_originals, strict=True)
        ],
    }


def _rates(name: str, after: Score, before: Score | None) -> dict[str, Any]:
    metrics = {name: after.value, f"{name}_interval": confidence_interval(after)}
    if before is None:
        return metrics
    rise = compare(after, before)
    rises = {f"{name}_rise": rise.difference, f"{name}_rise_interval": (rise.low, rise.high)}
    return metrics | {f"{name}_original": before.value} | rises


def _digit_metrics(texts: Sequence[str], heard: Sequence[str], heard_originals: Sequence[str]) -> dict[str, Any]:
    """Return the digit error rates, or nothing unless all texts have digits."""
    if not texts or not all(map(digits_of, texts)):
        return {}
    after, before = (digit_error_rate(texts, said).grouped(texts) for said in (heard, heard_originals))
    return _rates("digit_error", after, before)


def opinion_metrics(clips: Sequence[Clip], before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Return the mean predicted opinions of clips before and after the codec, from 1 to 5, with 95 % intervals."""
    metrics: dict[str, Any] = {}
    for name, opinions in (("mos", after), ("mos_original", before)):
        score = Score.of_mean(opinions).grouped([clip.text or clip.name for clip in clips])
        metrics |= {name: score.value, f"{name}_interval": confidence_interval(score, is_share=False)}
    return metrics


def mel_distance(original: Sound, decoded: Sound) -> float:
    """Return the mean difference of two waves' natural log-mels over their common length."""
    import torch

    from vita_audio.resample import resample
    from vita_audio.speech_decoder.mel import FFT_SIZE, SAMPLE_RATE, mel_spectrogram

    waves = [resample(wave, rate, SAMPLE_RATE) for wave, rate in (original, decoded)]
    length = max(min(map(len, waves)), FFT_SIZE)
    mels = [mel_spectrogram(torch.nn.functional.pad(wave, (0, length))[None, :length]) for wave in waves]
    return float((mels[0] - mels[1]).abs().mean())
