"""Measure a speech codec: speech -> codes -> speech, judged by a recogniser against the same judge on the originals.

    python -m evaluation.evaluate_codec --corpus domain=DIR --corpus digits=DIR --output DIR

A corpus is a folder as `tools/make_speech_corpus.py` writes it (`manifest.jsonl` with `audio` and `text`). The decoded
waves, `codec.json` and a picture of the first pair's mel spectrograms go to the output folder.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from evaluation.judges import Judge, get_judge
from evaluation.metrics import codebook_perplexity, digit_error_rate, word_error_rate
from vita_audio.audio_tokenizers import AudioTokenizer, get_audio_tokenizer
from vita_audio.data.audio import load_audio
from vita_audio.speech_decoder.mel import SAMPLE_RATE, mel_spectrogram


def read_corpus(folder: Path, max_clips: int | None) -> list[tuple[Path, str]]:
    """Audio files and texts of a corpus folder.

    Raises: FileNotFoundError without a manifest.
    """
    manifest = folder / "manifest.jsonl"
    if not manifest.is_file():
        raise FileNotFoundError(f"no {manifest}; make a corpus with tools/make_speech_corpus.py")
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(folder / row["audio"], row["text"]) for row in rows][:max_clips]


def evaluate_corpus(clips: list[tuple[Path, str]], tokenizer: AudioTokenizer, judge: Judge, output: Path) -> dict:
    """Figures of one corpus; the decoded waves are written to `output`."""
    output.mkdir(parents=True, exist_ok=True)
    originals, decoded, codes, seconds, cpu_seconds = [], [], [], 0.0, 0.0
    for path, _ in tqdm(clips, desc=f"codec {output.name}", unit="clip"):
        wave = load_audio(path, tokenizer.sample_rate)
        codes.append(tokenizer.encode(wave, tokenizer.sample_rate))
        started = time.process_time()
        made = tokenizer.decode(codes[-1])
        cpu_seconds += time.process_time() - started
        seconds += len(made) / tokenizer.output_rate
        soundfile.write(output / f"{path.stem}.wav", made.numpy(), tokenizer.output_rate)
        originals.append((wave, tokenizer.sample_rate))
        decoded.append((made, tokenizer.output_rate))
    texts = [text for _, text in clips]
    heard_originals = judge.transcribe(originals, progress="judging originals")
    heard = judge.transcribe(decoded, progress="judging decoded")
    return {
        "clips": len(clips),
        "wer": word_error_rate(texts, heard),
        "wer_original": word_error_rate(texts, heard_originals),
        **digit_figures(texts, heard, heard_originals),
        "codebook_perplexity": codebook_perplexity(codes, tokenizer.vocab_size),
        "codebook_size": tokenizer.vocab_size,
        "decoding_cpu_seconds_per_second": cpu_seconds / seconds,
        "generated": [
            {"wav": f"{path.stem}.wav", "reference_text": text, "transcript": transcript, "original": original}
            for (path, text), transcript, original in zip(clips, heard, heard_originals, strict=True)
        ],
    }


def digit_figures(texts: list[str], heard: list[str], heard_originals: list[str]) -> dict[str, float]:
    """Digit error rates, where the texts have digits."""
    try:
        rates = digit_error_rate(texts, heard), digit_error_rate(texts, heard_originals)
    except ValueError:
        return {}
    return dict(zip(("digit_error", "digit_error_original"), rates, strict=True))


def draw_mels(original: Path, decoded: Path, picture: Path) -> None:
    """Mel spectrograms of an original and of what the codec made of it, one above the other."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 1, figsize=(9, 5), sharex=True, layout="constrained")
    for axis, path, title in zip(axes, (original, decoded), ("original", "after the codec"), strict=True):
        mel = mel_spectrogram(load_audio(path, SAMPLE_RATE)[None])[0]
        span = (0, mel.shape[1] * 256 / SAMPLE_RATE, 0, 80)
        axis.imshow(mel.numpy(), origin="lower", aspect="auto", extent=span)
        axis.set(title=title, ylabel="mel band")
    axes[-1].set_xlabel("seconds")
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", action="append", required=True, metavar="NAME=DIR", help="may be given repeatedly")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--audio-tokenizer-type", default="glm4voice")
    parser.add_argument("--audio-tokenizer-path", help="default: the small one of this package")
    parser.add_argument("--audio-decoder-path")
    parser.add_argument("--judge", default="whisper_tiny_en")
    parser.add_argument("--max-clips", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = get_audio_tokenizer(args.audio_tokenizer_type, args.audio_tokenizer_path, args.audio_decoder_path)
    judge = get_judge(args.judge, num_threads=1)
    results = {"judge": judge.name}
    for entry in args.corpus:
        name, _, folder = entry.partition("=")
        if not name or not folder:
            parser.error(f"--corpus must be NAME=DIR, got {entry!r}")
        clips = read_corpus(Path(folder), args.max_clips)
        results[name] = evaluate_corpus(clips, tokenizer, judge, args.output / name)
        if len(results) == 2:
            draw_mels(clips[0][0], args.output / name / f"{clips[0][0].stem}.wav", args.output / "mel.png")
        shown = {key: value for key, value in results[name].items() if key != "generated"}
        print(name, json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in shown.items()}))
    perplexities = [value["codebook_perplexity"] for value in results.values() if isinstance(value, dict)]
    results["mean_codebook_perplexity"] = float(np.mean(perplexities))
    (args.output / "codec.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
