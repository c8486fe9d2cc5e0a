"""Measure a speech codec: speech -> codes -> speech, judged by a recogniser against the same judge on the originals.

    python -m evaluation.evaluate_codec --corpus domain=DIR --corpus digits=DIR --output DIR

A corpus is a folder of audio files. Texts come from `manifest.jsonl` (`audio` and `text`), as
`tools/codec/make_corpus.py` writes it, or else from `NAME.txt` beside `NAME.wav`; where no clip has one, words are
compared with those heard in the originals. The decoded waves, `codec.json` and a picture of the first pair's mel
spectrograms go to the output folder.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from evaluation.judges import Judge, get_judge
from evaluation.metrics.ours import code_counts, codebook_perplexity, digit_error_rate, word_error_rate
from evaluation.metrics.score import check_unique
from evaluation.reporting.plots import draw_spectrograms
from evaluation.suites import read_rows
from vita_audio.audio_tokenizers import AudioTokenizer, get_audio_tokenizer
from vita_audio.constants import INPUT_RATE
from vita_audio.data.audio import load_audio
from vita_audio.errors import one_line_errors
from vita_audio.resample import resample
from vita_audio.speech_decoder.mel import FFT_SIZE, SAMPLE_RATE, mel_spectrogram

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")


@dataclass(frozen=True)
class Clip:
    """An audio file, its name in the output, and what is said in it if that is known."""

    path: Path
    name: str
    text: str | None


def read_corpus(folder: Path, max_clips: int | None = None) -> list[Clip]:
    """Clips of a corpus folder.

    Raises: FileNotFoundError if the folder is missing or holds no audio; ValueError for a line of the manifest without
        `audio` or with a `text` that is none, texts of some clips only, or two clips of one name.
    """
    manifest = folder / "manifest.jsonl"
    if manifest.is_file():
        clips = [_listed(folder, row, f"{manifest}:{number}") for number, row in read_rows(manifest)]
    else:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
        clips = [Clip(path, _name(path.relative_to(folder)), _text(path)) for path in paths]
    if not clips:
        raise FileNotFoundError(f"no {', '.join(AUDIO_SUFFIXES)} files in {folder}; give a folder of speech")
    check_unique([clip.name for clip in clips], str(folder))
    without = [clip.name for clip in clips if clip.text is None]
    if 0 < len(without) < len(clips):
        raise ValueError(
            f"{folder}: all clips must have a text or none, {len(without)} of {len(clips)} have none, such as "
            f"{without[0]}; add their texts or take these clips out"
        )
    return clips[:max_clips]


def _listed(folder: Path, row: Mapping[str, Any], place: str) -> Clip:
    audio, text = row.get("audio"), row.get("text")
    if not isinstance(audio, str) or not isinstance(text, str | None):
        raise ValueError(f'{place}: must have "audio", a file, and may have "text", got {dict(row)}')
    return Clip(folder / audio, _name(Path(audio)), text)


def _name(path: Path) -> str:
    """Name what becomes of a file: its folders belong to it, unless they lead elsewhere."""
    return path.stem if path.is_absolute() or ".." in path.parts else "-".join(path.with_suffix("").parts)


def _text(path: Path) -> str | None:
    file = path.with_suffix(".txt")
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def hear_originals(clips: Sequence[Clip], judge: Judge) -> list[str]:
    """What the judge hears in the clips as they are."""
    originals = [(load_audio(clip.path, INPUT_RATE), INPUT_RATE) for clip in clips]
    return judge.transcribe(originals, progress="judging originals")


def evaluate_corpus(
    clips: Sequence[Clip], tokenizer: AudioTokenizer, judge: Judge | None, heard_originals: Sequence[str], output: Path
) -> dict:
    """Figures of one corpus; the decoded waves are written to `output`.

    Args:
        judge: None: nothing is judged.
        heard_originals: From `hear_originals` with the same judge.
    """
    output.mkdir(parents=True, exist_ok=True)
    decoded, codes, distances = [], [], []
    seconds = encoding_seconds = decoding_seconds = 0.0
    for clip in tqdm(clips, desc=f"codec {output.name}", unit="clip"):
        wave = load_audio(clip.path, tokenizer.sample_rate)
        started = time.process_time()
        codes.append(tokenizer.encode(wave, tokenizer.sample_rate))
        encoding_seconds += time.process_time() - started
        voice = tokenizer.make_voice(wave, tokenizer.sample_rate) if tokenizer.needs_voice else None
        started = time.process_time()
        made = tokenizer.decode(codes[-1], voice)
        decoding_seconds += time.process_time() - started
        seconds += len(wave) / tokenizer.sample_rate
        distances.append(mel_distance((wave, tokenizer.sample_rate), (made, tokenizer.output_rate)))
        soundfile.write(output / f"{clip.name}.wav", made.numpy(), tokenizer.output_rate)
        decoded.append((made, tokenizer.output_rate))
    return {
        "clips": len(clips),
        **code_figures(codes, tokenizer),
        "mel_distance": float(np.mean(distances)),
        "encoding_cpu_seconds_per_second": encoding_seconds / seconds,
        "decoding_cpu_seconds_per_second": decoding_seconds / seconds,
        **({} if judge is None else judged_figures(clips, judge, decoded, heard_originals)),
    }


def code_figures(codes: Sequence[Sequence[int]], tokenizer: AudioTokenizer) -> dict[str, float]:
    """How many bits per second codes may carry, how many they do by their frequencies, and how many codes occur."""
    perplexity = codebook_perplexity(codes, tokenizer.vocab_size)
    return {
        "codes_per_second": tokenizer.frame_rate,
        "bits_per_second": tokenizer.frame_rate * tokenizer.bits_per_code,
        "bits_per_second_used": tokenizer.frame_rate * math.log2(perplexity / tokenizer.codes_per_group),
        "codebook_size": tokenizer.vocab_size,
        "codes_used": int((code_counts(codes, tokenizer.vocab_size) > 0).sum()),
        "codebook_perplexity": perplexity,
    }


def judged_figures(
    clips: Sequence[Clip], judge: Judge, decoded: Sequence[tuple[Tensor, int]], heard_originals: Sequence[str]
) -> dict:
    """Words understood after the codec, and before it unless those are what it is compared with."""
    heard = judge.transcribe(decoded, progress="judging decoded")
    written = [clip.text for clip in clips if clip.text is not None]
    texts = written or list(heard_originals)
    return {
        "wer": word_error_rate(texts, heard),
        **({"wer_original": word_error_rate(texts, heard_originals)} if written else {}),
        **digit_figures(texts, heard, heard_originals),
        "generated": [
            {"wav": f"{clip.name}.wav", "reference_text": text, "transcript": transcript, "original": original}
            for clip, text, transcript, original in zip(clips, texts, heard, heard_originals, strict=True)
        ],
    }


def digit_figures(texts: Sequence[str], heard: Sequence[str], heard_originals: Sequence[str]) -> dict[str, float]:
    """Digit error rates, where the texts have digits."""
    try:
        rates = digit_error_rate(texts, heard), digit_error_rate(texts, heard_originals)
    except ValueError:
        return {}
    return dict(zip(("digit_error", "digit_error_original"), rates, strict=True))


def mel_distance(original: tuple[Tensor, int], decoded: tuple[Tensor, int]) -> float:
    """Mean difference of two waves' log-mels as far as both last, natural logarithm; each given with its rate."""
    waves = [resample(wave, rate, SAMPLE_RATE) for wave, rate in (original, decoded)]
    length = max(min(map(len, waves)), FFT_SIZE)
    mels = [mel_spectrogram(torch.nn.functional.pad(wave, (0, length))[None, :length]) for wave in waves]
    return float((mels[0] - mels[1]).abs().mean())


def shown(figures: dict) -> dict:
    """Figures for a line of output."""
    numbers = {key: value for key, value in figures.items() if key != "generated"}
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in numbers.items()}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", action="append", required=True, metavar="NAME=DIR", help="may be given repeatedly")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--audio-tokenizer-type", default="glm4voice")
    parser.add_argument("--audio-tokenizer-path", help="default: the small one of this package")
    parser.add_argument("--audio-decoder-path")
    parser.add_argument("--judge", default="whisper_tiny_en")
    parser.add_argument("--max-clips", type=int)
    options = parser.parse_args(arguments)
    named = [entry.partition("=")[::2] for entry in options.corpus]
    names = [name for name, _ in named]
    if not all(name and folder for name, folder in named) or len({*names, "judge"}) <= len(names):
        parser.error(f"--corpus must be NAME=DIR with a name of its own each, got {' '.join(options.corpus)}")
    if options.max_clips is not None and options.max_clips < 1:
        parser.error(f"--max-clips must be at least 1, got {options.max_clips}")
    options.corpora = {name: Path(folder) for name, folder in named}
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    corpora = {name: read_corpus(folder, options.max_clips) for name, folder in options.corpora.items()}
    torch.set_num_threads(1)
    tokenizer = get_audio_tokenizer(
        options.audio_tokenizer_type, options.audio_tokenizer_path, options.audio_decoder_path
    )
    judge = get_judge(options.judge, num_threads=1)
    figures = {}
    for name, clips in corpora.items():
        heard = hear_originals(clips, judge)
        figures[name] = evaluate_corpus(clips, tokenizer, judge, heard, options.output / name)
        print(name, json.dumps(shown(figures[name])))
    name, clips = next(iter(corpora.items()))
    pair = {
        "original": (clips[0].path, clips[0].text or ""),
        "after the codec": (options.output / name / f"{clips[0].name}.wav", clips[0].text or ""),
    }
    draw_spectrograms(pair, options.output / "mel.png")
    mean = float(np.mean([corpus["codebook_perplexity"] for corpus in figures.values()]))
    results = {"judge": judge.name, **figures, "mean_codebook_perplexity": mean}
    (options.output / "codec.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with one_line_errors("evaluation.evaluate_codec"):
        main()
