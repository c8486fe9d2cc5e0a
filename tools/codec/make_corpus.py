"""Synthesise speech with texts and phones for training a codec: a folder of FLAC files with a manifest.

Needs piper-tts and a Piper voice package (the decoder's voice). The other voices need the commands flite and espeak-ng;
one of them is enough. Existing files are kept, so that an interrupted run can be continued.

    python -m tools.codec.make_corpus --output DIR --main-count 5100 --other-count 2600 --parallel 3000 --domain
    python -m tools.codec.make_corpus --output TEST --texts FILE --voice flite:slt --renderings 4 --processes 0
"""

import argparse
import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from tools.codec.texts import corpus_texts, domain_texts, frequent_texts
from tools.common.synthetic_speech import (
    default_voice,
    load_voice,
    speak_command,
    synthesise,
    trim_silence,
    write_flac,
)
from vita_audio.command_line import OneLineParser, in_range
from vita_audio.errors import one_line_errors

PEAK = 0.7
SETTINGS = {"length_scale": (0.85, 1.2), "noise_scale": (0.5, 0.8), "noise_w_scale": (0.6, 0.9)}  # ranges for Piper
MAIN_VOICE = "joe"
OTHER_VOICES = (
    *("flite:slt", "flite:awb", "flite:rms", "flite:kal16"),
    *("espeak:en-us", "espeak:en-us+f3", "espeak:en-gb+m3"),
)


@dataclass(frozen=True)
class Job:
    """One utterance to speak; `seed` draws speed, pitch and noise."""

    voice: str
    text: str
    seed: int
    path: Path


class Speaker:
    """Makes the audio files and manifest rows of one process.

    The noise in Piper's speech is determined by `rank` and by the texts that the process has synthesised before.
    """

    def __init__(self, rank: int):
        from vita_audio.speech_decoder.mel import SAMPLE_RATE

        self.rate = SAMPLE_RATE
        self.piper = load_voice(default_voice(), seed=rank)

    def __call__(self, job: Job) -> dict:
        """Write the audio file of an utterance unless it exists; return its manifest row."""
        if not job.path.exists():
            rng = random.Random(job.seed)
            if job.voice == MAIN_VOICE:
                wave = synthesise(self.piper, job.text, **{name: rng.uniform(*span) for name, span in SETTINGS.items()})
            else:
                wave = speak_command(job.voice, self.rate, job.text, rng)
            wave = trim_silence(wave, self.rate)
            write_flac(job.path, wave * (PEAK / np.abs(wave).max()), self.rate)
        return {
            "audio": job.path.name,
            "text": job.text,
            "phones": [phone for sentence in self.piper.phonemize(job.text) for phone in sentence],
            "voice": job.voice,
            "seconds": round(soundfile.info(job.path).duration, 3),
        }


def command_of(voice: str) -> str:
    """Return the command that speaks in one of the `OTHER_VOICES`."""
    return "flite" if voice.startswith("flite") else "espeak-ng"


def choose_utterances(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Return (voice, text) of every utterance. Raises: OSError for --texts; ValueError for a voice without command."""
    texts = corpus_texts(args.main_count + args.other_count, args.seed)
    main_texts, other_texts = texts[: args.main_count], texts[args.main_count :]
    voices = [voice for voice in OTHER_VOICES if shutil.which(command_of(voice))]
    if not voices and (other_texts or args.parallel):
        print(f"neither flite nor espeak-ng is installed; using only the voice {MAIN_VOICE}")
    more_texts = frequent_texts(args.frequent_count, args.seed) if args.frequent_count else []
    more_texts += domain_texts(args.seed) if args.domain else []
    spoken = [(MAIN_VOICE, text) for text in main_texts]
    spoken += [*zip(cycle(voices), other_texts), *zip(cycle(voices), main_texts[: args.parallel])]
    spoken += [(MAIN_VOICE, text) for text in more_texts]
    if args.texts:
        if args.voice not in (MAIN_VOICE, *voices):
            raise ValueError(f"--voice {args.voice} needs the command {command_of(args.voice)}; install it")
        lines = args.texts.read_text(encoding="utf-8").splitlines()
        spoken += [(args.voice, line.strip()) for line in lines if line.strip()] * args.renderings
    return spoken


def plan_jobs(args: argparse.Namespace) -> list[Job]:
    """Return every utterance and its file, in an order that mixes the voices."""
    jobs, renderings = [], Counter()
    for voice, text in choose_utterances(args):
        count = renderings[voice, text]  # of this text by this voice so far
        renderings[voice, text] += 1
        again = f" {count}" if count else ""
        key = hashlib.sha1(f"{args.seed} {voice} {text}{again}".encode()).hexdigest()[:16]
        jobs.append(Job(voice, text, int(key, 16), args.output / f"{key}.flac"))
    random.Random(args.seed).shuffle(jobs)
    return jobs


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("make_corpus", __doc__)
    count = in_range(int, minimum=0)
    parser.add_argument("--output", type=Path, required=True, help="folder for FLAC files and manifest.jsonl")
    parser.add_argument("--main-count", type=count, default=0, help="generated utterances of the decoder's voice")
    parser.add_argument("--other-count", type=count, default=0, help="generated utterances shared by the other voices")
    parser.add_argument(
        "--parallel", type=count, default=0, help="texts of the decoder's voice that another voice repeats"
    )
    parser.add_argument("--frequent-count", type=count, default=0, help="rows of frequent words; needs wordfreq")
    parser.add_argument("--domain", action="store_true", help="add the demo's training texts in the decoder's voice")
    parser.add_argument("--texts", type=Path, help="text file with more sentences, one per line")
    parser.add_argument("--voice", default=MAIN_VOICE, choices=(MAIN_VOICE, *OTHER_VOICES), help="voice for --texts")
    parser.add_argument("--renderings", type=int, default=1, help="different renderings of --texts (default: 1)")
    parser.add_argument(
        "--processes", type=count, default=2, help="worker processes; 0: this process, with reproducible waves"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for texts and voices")
    args = parser.parse_args(arguments)
    if args.renderings < 1 or (args.renderings > 1 and args.texts is None):
        parser.error(f"--renderings must be 1 or more, and needs --texts, got {args.renderings}")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    with one_line_errors("make_corpus"):
        jobs = plan_jobs(args)
    from tools.codec.corpus import MANIFEST
    from vita_audio.data.parallel import map_ordered

    args.output.mkdir(parents=True, exist_ok=True)
    with open(args.output / MANIFEST, "w", encoding="utf-8") as manifest:
        rows = map_ordered(Speaker, jobs, args.processes, chunk_size=4)
        for row in tqdm(rows, total=len(jobs), unit="clip", smoothing=0.05):
            manifest.write(json.dumps(row, ensure_ascii=False) + "\n")
            manifest.flush()


if __name__ == "__main__":
    main()
