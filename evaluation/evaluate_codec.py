"""Measure speech codecs: speech -> codes -> speech, transcribed by a judge and compared with the text.

    python -m evaluation.evaluate_codec --corpus domain=DIR --corpus digits=DIR --output DIR
    python -m evaluation.evaluate_codec --corpus speech=DIR --output outputs/codecs --compare glm4voice \\
        glm4voice=glm-4-voice-tokenizer,glm-4-voice-decoder snac24khz=snac_24khz sparktts=Spark-TTS-0.5B

A corpus is a folder of audio files, or a file of JSON lines with `audio` and `text` (or `reference`). The texts of a
folder come from its `manifest.jsonl`, as `tools.codec.make_corpus` writes it, or else from `NAME.txt` next to
`NAME.wav`; if no clip has a text, transcripts are compared with those of the originals.

The output folder gets the decoded waves, `codec.json`, and a plot of the first clip's mel spectrograms. With --compare
it gets `codecs.json`, `codecs.md` and plots: spectrograms of a clip after each codec, WER over bits per second. A codec
whose codes do not determine the voice is given the voice of each clip.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.codec_metrics import (
    code_metrics,
    judged_metrics,
    mel_distance,
    opinion_metrics,
    training_code_metrics,
)
from evaluation.metrics.score import check_unique
from evaluation.suites import draw, read_rows
from vita_audio.command_line import OneLineParser, add_codec_options, in_range
from vita_audio.constants import INPUT_RATE
from vita_audio.errors import one_line_errors
from vita_audio.files.atomic import write_json, write_text

if TYPE_CHECKING:
    from evaluation.judges import Judge, PredictedMos, Sound
    from vita_audio.audio_tokenizers import AudioTokenizer

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")
RESULTS = "codec.json"
TRAINING = "training_codes"  # key of the codebook's use in training data


@dataclass(frozen=True)
class Clip:
    """An audio file, its name in the output, and its transcript if known."""

    path: Path
    name: str
    text: str | None


def read_corpus(source: Path, max_clips: int | None = None) -> list[Clip]:
    """Read the clips of a folder or a manifest, or a fixed draw of `max_clips` of them.

    Raises: FileNotFoundError if the folder is missing or holds no audio; ValueError for a line of the manifest without
        `audio` or with a `text` that is not a string, for texts of some clips only, or for two clips of one name.
    """
    manifest = source if source.is_file() else source / "manifest.jsonl"
    if manifest.is_file():
        clips = [_listed(manifest.parent, row, f"{manifest}:{number}") for number, row in read_rows(manifest)]
    else:
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
        clips = [Clip(path, _name(path.relative_to(source)), _text(path)) for path in paths]
    if not clips:
        raise FileNotFoundError(f"no {', '.join(AUDIO_SUFFIXES)} files in {source}; give a folder of speech")
    check_unique([clip.name for clip in clips], str(source))
    without = [clip.name for clip in clips if clip.text is None]
    if 0 < len(without) < len(clips):
        raise ValueError(
            f"{source}: all clips must have a text or none, {len(without)} of {len(clips)} have none, such as "
            f"{without[0]}; add their texts or take these clips out"
        )
    return draw(clips, max_clips)


def _listed(folder: Path, row: Mapping[str, Any], place: str) -> Clip:
    audio, text = row.get("audio"), row.get("text", row.get("reference"))
    if not isinstance(audio, str) or not isinstance(text, str | None):
        raise ValueError(f'{place}: must have "audio", a file, and may have "text", got {dict(row)}')
    return Clip(folder / audio, _name(Path(audio)), text)


def _name(path: Path) -> str:
    """Return the name of a clip, which includes the folders of a relative path."""
    return path.stem if path.is_absolute() or ".." in path.parts else "-".join(path.with_suffix("").parts)


def _text(path: Path) -> str | None:
    file = path.with_suffix(".txt")
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def load_originals(clips: Sequence[Clip]) -> list[Sound]:
    """Return the waves of the clips, (samples,) float32, at INPUT_RATE."""
    from vita_audio.data.audio import load_audio

    return [(load_audio(clip.path, INPUT_RATE), INPUT_RATE) for clip in clips]


def opinions_of(sounds: Sequence[Sound], mos: PredictedMos, label: str) -> list[float]:
    """Return the predicted opinion of each sound, from 1 to 5; `label` is that of a progress bar."""
    from tqdm import tqdm

    return [mos.measure(sound) for sound in tqdm(sounds, desc=f"opinions of {label}", unit="clip")]


def evaluate_corpus(
    clips: Sequence[Clip],
    tokenizer: AudioTokenizer,
    output: Path,
    *,
    judge: Judge | None = None,
    heard_originals: Sequence[str] = (),
    mos: PredictedMos | None = None,
    opinions_of_originals: Sequence[float] = (),
) -> dict[str, Any]:
    """Return the metrics of a codec on a corpus, and write the decoded waves to `output`.

    Args:
        judge: Transcribes the waves; None: no error rates.
        heard_originals: Transcripts of the original clips by the same judge.
        mos: Predicts the opinion scores of the waves; None: none.
        opinions_of_originals: Those of the original clips.
    """
    import soundfile
    from tqdm import tqdm

    from vita_audio.data.audio import load_audio

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
        target = tokenizer.prepare(wave, tokenizer.sample_rate)
        distances.append(mel_distance((target, tokenizer.sample_rate), (made, tokenizer.output_rate)))
        soundfile.write(output / f"{clip.name}.wav", made.numpy(), tokenizer.output_rate)
        decoded.append((made, tokenizer.output_rate))
    metrics = {
        "clips": len(clips),
        **code_metrics(codes, tokenizer),
        "mel_distance": float(np.mean(distances)),
        "encoding_cpu_seconds_per_second": encoding_seconds / seconds,
        "decoding_cpu_seconds_per_second": decoding_seconds / seconds,
    }
    if mos:
        metrics |= opinion_metrics(clips, opinions_of_originals, opinions_of(decoded, mos, "decoded"))
    return metrics | ({} if judge is None else judged_metrics(clips, judge, decoded, heard_originals))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("evaluation.evaluate_codec", __doc__)
    parser.add_argument("--corpus", action="append", required=True, metavar="NAME=DIR", help="may be repeated")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    add_codec_options(parser)
    parser.add_argument(
        "--compare", nargs="+", metavar="TYPE[=PATH[,DECODER]]", help="codecs to compare, with their weights"
    )
    parser.add_argument("--judge", default="whisper_tiny_en", help="a judge, or none")
    parser.add_argument("--mos", action="store_true", help="also predict opinion scores, about 1 s for each clip")
    parser.add_argument("--language", default="en", help="language of the speech, which the judge must know")
    parser.add_argument("--max-clips", type=in_range(int, minimum=1), help="use a fixed draw of this many clips")
    parser.add_argument("--codes", type=Path, help="code store: also measure the use of the codebook in --codes-of")
    parser.add_argument("--codes-of", type=Path, metavar="YAML", help="training mixture")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, auto, ...")
    options = parser.parse_args(arguments)
    named = [entry.partition("=")[::2] for entry in options.corpus]
    options.corpora = {name: Path(folder) for name, folder in named if folder}
    if len({*filter(None, options.corpora), "judge", TRAINING}) < len(named) + 2:
        parser.error(f"--corpus must be NAME=DIR with a name of its own each, got {' '.join(options.corpus)}")
    if options.compare and len(named) > 1:
        parser.error(f"--compare needs a single --corpus, got {len(named)}")
    of_one_codec = ("audio_tokenizer_type", "audio_tokenizer_path", "audio_decoder_path", "codes", "codes_of")
    given = [name for name in of_one_codec if getattr(options, name) != parser.get_default(name)]
    if options.compare and given:
        parser.error(
            f"--compare names its codecs and leaves out --{given[0].replace('_', '-')}, which is for one codec"
        )
    if (options.codes is None) != (options.codes_of is None):
        parser.error("--codes and --codes-of belong together, got one of them")
    return options


def load_codecs(specifications: Sequence[str], device: str) -> dict[str, AudioTokenizer]:
    """Load codecs given as `TYPE[=PATH[,DECODER]]`; a repeated type is numbered.

    Raises: the errors of `get_audio_tokenizer`.
    """
    from vita_audio.audio_tokenizers import get_audio_tokenizer

    codecs: dict[str, AudioTokenizer] = {}
    for specification in specifications:
        kind, _, folders = specification.partition("=")
        path, _, decoder_path = folders.partition(",")
        number = sum(name.partition("-")[0] == kind for name in codecs) + 1
        tokenizer = get_audio_tokenizer(kind, path or None, decoder_path or None, device=device)
        codecs[kind if number == 1 else f"{kind}-{number}"] = tokenizer
    return codecs


def check_decoders(codecs: Iterable[AudioTokenizer]) -> None:
    """Raise ValueError for a codec that cannot decode."""
    for codec in codecs:
        if codec.decoder is None and not codec.has_one_folder:
            raise ValueError(f"{codec.name} needs a decoder: --audio-decoder-path, or TYPE=PATH,DECODER in --compare")


def measure(
    runs: Mapping[str, tuple[AudioTokenizer, Sequence[Clip]]],
    judge: Judge | None,
    output: Path,
    *,
    mos: PredictedMos | None = None,
) -> dict[str, dict[str, Any]]:
    """Print and return the metrics of codecs on corpora by the name of the run, whose waves go to its folder."""
    results, judged = {}, {}
    for name, (codec, clips) in runs.items():
        key = tuple(clips)
        if key not in judged:
            originals = load_originals(clips) if judge or mos else []
            heard = judge.transcribe(originals, progress="judging originals") if judge else []
            judged[key] = heard, opinions_of(originals, mos, "originals") if mos else []
        heard, opinions = judged[key]
        judges = {"judge": judge, "heard_originals": heard, "mos": mos, "opinions_of_originals": opinions}
        results[name] = evaluate_corpus(clips, codec, output / name, **judges)
        numbers = {key: value for key, value in results[name].items() if key != "generated"}
        shown = {key: np.round(value, 4).tolist() for key, value in numbers.items()}
        print(name, json.dumps(shown))
    return results


def write_comparison(output: Path, results: Mapping[str, Any], clips: Sequence[Clip], judge: str | None) -> None:
    """Write codecs.json, codecs.md and their plots."""
    from evaluation.reporting.page import TEMPLATES, render
    from evaluation.reporting.plots import draw_codecs, draw_spectrograms

    first = clips[0]
    sounds = {"original": first.path} | {name: output / name / f"{first.name}.wav" for name in results}
    text = first.text or first.name
    draw_spectrograms({name: (path, text) for name, path in sounds.items()}, output / "spectrograms.png")
    if judge:
        draw_codecs(results, output / "codecs.png")
    write_json(output / "codecs.json", {"judge": judge, "clips": len(clips), "codecs": results})
    markdown = render(TEMPLATES / "codecs.md", results=results, num_clips=len(clips), judge=judge)
    write_text(output / "codecs.md", markdown)
    print(f"wrote {output / 'codecs.md'}")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    corpora = {name: read_corpus(folder, options.max_clips) for name, folder in options.corpora.items()}

    import torch

    from evaluation.judges import PredictedMos, get_judge
    from evaluation.reporting.plots import draw_spectrograms
    from vita_audio.audio_tokenizers import get_audio_tokenizer, is_continuous
    from vita_audio.inference.pipeline import resolve_device

    device, output = resolve_device(options.device), options.output
    torch.set_num_threads(1)  # for CPU seconds that do not depend on the number of cores
    corpus, clips = next(iter(corpora.items()))
    training = {}
    if options.compare:
        runs = {name: (codec, clips) for name, codec in load_codecs(options.compare, device).items()}
    else:
        paths = (options.audio_tokenizer_path, options.audio_decoder_path)
        codec = get_audio_tokenizer(options.audio_tokenizer_type, *paths, device=device)
        runs = {name: (codec, own_clips) for name, own_clips in corpora.items()}
        if options.codes:
            all_roles = not is_continuous(options.audio_tokenizer_type)
            training[TRAINING] = training_code_metrics(options.codes, options.codes_of, codec, all_roles=all_roles)
    check_decoders(codec for codec, _ in runs.values())
    judge = None
    if options.judge != "none":
        judge = get_judge(options.judge, len(os.sched_getaffinity(0)), language=options.language)
    mos = PredictedMos() if options.mos else None
    results, judge_name = measure(runs, judge, output, mos=mos), judge and judge.name
    if options.compare:
        write_comparison(output, results, clips, judge_name)
        return
    perplexity = float(np.mean([metrics["codebook_perplexity"] for metrics in results.values()]))
    results = {"judge": judge_name, **results, "mean_codebook_perplexity": perplexity, **training}
    first = clips[0]
    sounds = {"original": first.path, "after the codec": output / corpus / f"{first.name}.wav"}
    draw_spectrograms({name: (path, first.text or "") for name, path in sounds.items()}, output / "mel.png")
    write_json(output / RESULTS, results)


if __name__ == "__main__":
    with one_line_errors("evaluation.evaluate_codec"):
        main()
