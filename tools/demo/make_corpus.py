"""Make the demo corpus: the demo domain in a language, in the training formats, with held-out files.

    python -m tools.demo.make_corpus --out data/demo --size quick
    python -m tools.demo.make_corpus --out data/demo/es --size quick --language es --keep data/demo

Writes audio/{train,heldout}/*.flac, {asr,tts,qa,text}.jsonl for training, heldout_{asr,tts,qa}.jsonl for evaluation,
and a mixture yaml each for stage 1, the MTP stages and the last stage. The size demo also has recordings by random
microphones in audio/microphone, and questions outside the domain: near.jsonl has those that are worded like the
domain's, and heldout_{outside,near}.jsonl both kinds. With --keep, the mixtures also read the corpus of a language that
the model knows, so that it is not forgotten. Paths in the files are relative to the folder, so it can be moved. The
same arguments give the same files. The same command resumes an interrupted run.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import soundfile
import yaml
from tqdm import tqdm

from tools.common.synthetic_speech import (
    default_voice,
    load_voice,
    speak_command,
    synthesise,
    trim_silence,
    write_flac,
)
from tools.demo.domain import DOMAINS, ENGLISH, LANGUAGES, MIXTURES, SIZES, Domain, Outside, Question
from tools.demo.microphones import random_recording
from vita_audio.command_line import OneLineParser, in_range
from vita_audio.data.samples import chat_sample, recognition_sample, spoken_answer_sample, synthesis_sample
from vita_audio.errors import one_line_errors
from vita_audio.files.atomic import write_text

PEAK = 0.8
SETTINGS = {"length_scale": (1.0, 1.2), "noise_scale": (0.4, 0.7), "noise_w_scale": (0.5, 0.8)}  # ranges for Piper
COMMAND_SETTINGS = {"speeds": (120, 145), "pitches": (45, 55), "factors": (1.0, 1.0)}  # ranges for espeak-ng
COMMAND_RATE = 22_050  # Hz
REFUSALS = 4  # times as many renderings of the answer to questions outside the domain, which is given most often
SHARD_FILES = 64  # files synthesised by one seeded session


@dataclass(frozen=True)
class Rendering:
    """One way to speak a text: the file, relative to the corpus folder, and Piper's settings."""

    text: str
    path: Path
    settings: Mapping[str, float]


@dataclass
class Corpus:
    """Renderings by path, and the training samples and evaluation items of each jsonl file.

    Attributes:
        recordings: Path of a rendering by that of its recording with a random microphone.
    """

    renderings: dict[Path, Rendering] = field(default_factory=dict)
    recordings: dict[Path, Path] = field(default_factory=dict)
    training: dict[str, list[dict]] = field(default_factory=dict)
    held_out: dict[str, list[dict]] = field(default_factory=dict)


def plan_corpus(size: str, seed: int = 0, domain: Domain = ENGLISH) -> Corpus:
    """Return the renderings and samples of a corpus of a size in `SIZES`; `seed` draws the training sentences."""
    counts, corpus = SIZES[size], Corpus()

    def render(text: str, number: int, part: str) -> str:
        digest = hashlib.sha1(f"{part} {number} {text}".encode()).hexdigest()
        rng = random.Random(digest)
        settings = {name: round(rng.uniform(*span), 3) for name, span in SETTINGS.items()}
        path = Path("audio") / part / f"{text.replace(' ', '_')}-{number}-{digest[:6]}.flac"
        corpus.renderings[path] = Rendering(text, path, settings)
        return path.as_posix()

    def render_all(texts: Iterable[str], times: int) -> list[tuple[str, str]]:
        return [(text, render(text, number, "train")) for text in texts for number in range(times)]

    def recorded(rendered: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the renderings, followed by their recordings, which the model hears but never speaks."""
        recordings = []
        for text, path in rendered:
            for number in range(counts.get("microphones", 0)):
                recording = Path("audio") / "microphone" / f"{Path(path).stem}-{number}.flac"
                corpus.recordings[recording] = Path(path)
                recordings.append((text, recording.as_posix()))
        return [*rendered, *recordings]

    asked = domain.questions(size)
    answer_of = {phrasing: question.answer for question in asked for phrasing in question.phrasings}
    sentences = render_all(domain.training_sentences(size, seed), counts["sentence_renderings"])
    answers = render_all((question.answer for question in asked), counts["answer_renderings"])
    prompts = render_all(answer_of, counts["question_renderings"])
    sentences += render_all(domain.more_sentences(size, seed), 1)
    transcribed = recorded(sentences + prompts + answers)
    if outside := domain.outside_questions(size, seed):
        answers += render_all([domain.outside.answer], REFUSALS * counts["answer_renderings"])
        prompts += render_all(outside, 1) + sentences[: counts["statements"]]
        answer_of |= {text: domain.outside.answer for text, _ in prompts if text not in answer_of}
    near = domain.near_questions if outside else ()
    corpus.training = {
        "asr": [recognition_sample(path, text) for text, path in transcribed],
        "tts": [synthesis_sample(text, path) for text, path in sentences + answers],
        "qa": _qa_samples(answer_of, [item for item in recorded(prompts) if item[0] not in near], answers),
        "text": [chat_sample(phrasing, answer) for phrasing, answer in answer_of.items()],
    }
    render_held_out = partial(render, number=0, part="heldout")
    corpus.held_out = _held_out_rows(domain.heldout_sentences(size), asked, render_held_out)
    if outside:
        near_prompts = [item for item in recorded(prompts) if item[0] in near]
        corpus.training["near"] = _qa_samples(answer_of, near_prompts, answers)
        corpus.held_out |= _outside_rows(domain.outside, render_held_out)
    return corpus


def _held_out_rows(
    sentences: Sequence[str], asked: Sequence[Question], render: Callable[[str], str]
) -> dict[str, list[dict]]:
    """Return items for evaluation; each question is asked in a training phrasing and in its held-out one."""
    rows: dict[str, list[dict]] = {"asr": [], "tts": [], "qa": []}
    for index, text in enumerate(sentences):
        path = render(text)
        rows["asr"].append({"id": f"asr-{index}", "task": "asr", "audio": path, "reference": text})
        rows["tts"].append({"id": f"tts-{index}", "task": "tts", "text": text, "audio": path, "reference": text})
    for unseen in ("rendering", "phrasing"):
        for index, item in enumerate(asked):
            text = item.phrasings[0] if unseen == "rendering" else item.held_out_phrasing
            row = {"id": f"qa-{index}-{unseen}", "task": "qa", "audio": render(text), "text": text}
            rows["qa"].append(row | {"reference": item.answer, "keyword": item.keyword, "unseen": unseen})
    return rows


def _outside_rows(outside: Outside, render: Callable[[str], str]) -> dict[str, list[dict]]:
    """Return the held-out questions outside the domain, and those among them that resemble questions of the domain."""
    answer = {"reference": outside.answer, "keyword": outside.keyword}
    texts = {"outside": outside.held_out, "near": outside.near_held_out}
    return {
        name: [
            {"id": f"{name}-{index}", "task": "qa", "audio": render(text), "text": text, **answer}
            for index, text in enumerate(listed)
        ]
        for name, listed in texts.items()
    }


def _qa_samples(
    answer_of: Mapping[str, str], prompts: Sequence[tuple[str, str]], answers: Sequence[tuple[str, str]]
) -> list[dict]:
    """Return a sample for every spoken question, using the renderings of its answer in turn."""
    spoken_answers = {
        answer: cycle([path for text, path in answers if text == answer]) for answer in set(answer_of.values())
    }
    pairs = [(path, answer_of[text]) for text, path in prompts]
    return [spoken_answer_sample(path, answer, next(spoken_answers[answer])) for path, answer in pairs]


def load_speaker(voice: Path | str, seed: int) -> Callable[[str, Rendering], tuple[np.ndarray, int]]:
    """Return a function that speaks a text as a rendering asks for, and returns the wave and its rate.

    Args:
        voice: File of a Piper voice, or ENGINE:NAME of a voice of `speak_command`.
    Raises: FileNotFoundError if the engine is not installed.
    """
    if isinstance(voice, str):
        engine = voice.partition(":")[0]
        if shutil.which(engine) is None:
            raise FileNotFoundError(f"the voice {voice} needs the program {engine}; apt-get install {engine}")
        rng = random.Random()

        def speak(text: str, rendering: Rendering) -> tuple[np.ndarray, int]:
            rng.seed(rendering.path.name)
            return speak_command(voice, COMMAND_RATE, text, rng, **COMMAND_SETTINGS), COMMAND_RATE

        return speak
    piper = load_voice(voice, seed)
    return lambda text, rendering: (synthesise(piper, text, **rendering.settings), piper.config.sample_rate)


def speak_corpus(
    out: Path, renderings: Sequence[Rendering], voice: Path | str, *, threads: int, domain: Domain = ENGLISH
) -> None:
    """Write all missing audio files on several threads; the synthesiser releases Python's lock.

    Piper draws its noise from one seeded stream per shard, so an incomplete shard is synthesised again as a whole.
    """
    shards = [renderings[start : start + SHARD_FILES] for start in range(0, len(renderings), SHARD_FILES)]
    missing = {
        seed: shard for seed, shard in enumerate(shards) if not all((out / item.path).exists() for item in shard)
    }
    num_missing = sum(map(len, missing.values()))
    bar = tqdm(total=len(renderings), initial=len(renderings) - num_missing, desc="speaking", unit="file")

    def speak(seed: int, shard: Sequence[Rendering]) -> None:
        speaker = load_speaker(voice, seed)
        for rendering in shard:
            wave, rate = speaker(domain.spoken(rendering.text), rendering)
            if not (out / rendering.path).exists():
                write_flac(out / rendering.path, trim_silence(wave, rate) * PEAK, rate)
            bar.update()

    with bar, ThreadPoolExecutor(threads) as pool:
        list(pool.map(speak, missing, missing.values()))  # an error cancels the shards not yet started


def record_corpus(out: Path, recordings: Mapping[Path, Path]) -> None:
    """Write the missing recordings; the name of each decides its microphone."""
    for path, rendering in tqdm(recordings.items(), desc="recording", unit="file", disable=not recordings):
        if not (out / path).exists():
            wave, rate = soundfile.read(out / rendering, dtype="float32")
            write_flac(out / path, random_recording(wave, rate, zlib.crc32(path.name.encode())), rate)


def write_corpus_files(out: Path, corpus: Corpus, kept: Path | None = None) -> None:
    """Write the jsonl files and the mixtures, which also read the files of the corpus in `kept`."""
    files = {f"{name}.jsonl": rows for name, rows in corpus.training.items()}
    files |= {f"heldout_{name}.jsonl": rows for name, rows in corpus.held_out.items()}
    for name, rows in files.items():
        write_text(out / name, "".join(json.dumps(row) + "\n" for row in rows))
    for name, ratios in MIXTURES.items():
        folders = {"demo": "", **({"kept": os.path.relpath(kept, out)} if kept else {})}
        sources = {
            f"{corpus_name}_{source}": {"ratio": ratio, "data_paths": [os.path.join(folder, f"{source}.jsonl")]}
            for corpus_name, folder in folders.items()
            for source, ratio in ratios.items()
            if source in corpus.training
        }
        write_text(out / f"{name}.yaml", yaml.safe_dump({"dataset": sources}, sort_keys=False))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("make_corpus", __doc__)
    parser.add_argument("--out", type=Path, default=Path("data/demo"), help="folder to write")
    parser.add_argument(
        "--size", choices=tuple(SIZES), default="quick", help="ci takes seconds, quick minutes, demo and long more"
    )
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="language of the texts")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="corpus of this program that the mixtures also read")
    parser.add_argument("--seed", type=int, default=0, help="seed for the training sentences")
    parser.add_argument(
        "--voice", type=Path, help="Piper .onnx file with its .onnx.json next to it (default: joe, or the language's)"
    )
    parser.add_argument(
        "--threads", type=in_range(int, minimum=1), default=os.cpu_count() or 1, help="synthesis threads"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors("make_corpus"):
        options.out.mkdir(parents=True, exist_ok=True)
        domain = DOMAINS[options.language]
        corpus = plan_corpus(options.size, options.seed, domain)
        voice = options.voice or domain.voice or default_voice()
        speak_corpus(options.out, list(corpus.renderings.values()), voice, threads=options.threads, domain=domain)
        record_corpus(options.out, corpus.recordings)
        write_corpus_files(options.out, corpus, options.keep)
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in corpus.training.items())
    print(f"{options.out}: {len(corpus.renderings)} audio files; training samples: {counts}")


if __name__ == "__main__":
    main()
