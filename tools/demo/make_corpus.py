"""Make the demo corpus: the demo domain spoken by a Piper voice, in the training formats, with held-out files.

    python -m tools.demo.make_corpus --out data/demo --size quick

Writes audio/{train,heldout}/*.flac, {asr,tts,qa,text}.jsonl for training, heldout_{asr,tts,qa}.jsonl for evaluation,
and a mixture yaml each for stage 1, the MTP stages and the last stage. The size demo also has recordings by random
microphones in audio/microphone, and heldout_{outside,near}.jsonl with questions outside the domain. Paths in the files
are relative to the folder, so it can be moved. The same arguments give the same files. The same command resumes an
interrupted run.
"""

import argparse
import hashlib
import json
import os
import random
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path

import soundfile
import yaml
from tqdm import tqdm

from tools.common.synthetic_speech import default_voice, load_voice, synthesise, trim_silence, write_flac
from tools.demo.domain import (
    MIXTURES,
    OUTSIDE,
    SIZES,
    Question,
    heldout_sentences,
    more_sentences,
    outside_questions,
    questions,
    spoken,
    training_sentences,
)
from tools.demo.microphones import random_recording
from vita_audio.command_line import OneLineParser, in_range
from vita_audio.constants import AUDIO_TAG
from vita_audio.errors import one_line_errors
from vita_audio.files.atomic import write_text
from vita_audio.text import ASR_PROMPT, TTS_PROMPT

PEAK = 0.8
SETTINGS = {"length_scale": (1.0, 1.2), "noise_scale": (0.4, 0.7), "noise_w_scale": (0.5, 0.8)}  # ranges for Piper
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


def plan_corpus(size: str, seed: int = 0) -> Corpus:
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

    asked = questions(size)
    answer_of = {phrasing: question.answer for question in asked for phrasing in question.phrasings}
    sentences = render_all(training_sentences(size, seed), counts["sentence_renderings"])
    answers = render_all((question.answer for question in asked), counts["answer_renderings"])
    prompts = render_all(answer_of, counts["question_renderings"])
    sentences += render_all(more_sentences(size, seed), 1)
    transcribed = recorded(sentences + prompts + answers)
    if outside := outside_questions(size, seed):
        answers += render_all([OUTSIDE.answer], REFUSALS * counts["answer_renderings"])
        prompts += render_all(outside, 1) + sentences[: counts["statements"]]
        answer_of |= {text: OUTSIDE.answer for text, _ in prompts if text not in answer_of}
    corpus.training = {
        "asr": [_chat(f"{ASR_PROMPT}\n{AUDIO_TAG}", text, path) for text, path in transcribed],
        "tts": [_chat(TTS_PROMPT + text, AUDIO_TAG, path) for text, path in sentences + answers],
        "qa": _qa_samples(answer_of, recorded(prompts), answers),
        "text": [_chat(phrasing, answer) for phrasing, answer in answer_of.items()],
    }
    render_held_out = partial(render, number=0, part="heldout")
    corpus.held_out = _held_out_rows(heldout_sentences(size), asked, render_held_out)
    if outside:
        corpus.held_out |= _outside_rows(render_held_out)
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


def _chat(user: str, assistant: str, *audios: str) -> dict:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"messages": messages, "audios": list(audios)} if audios else {"messages": messages}


def _outside_rows(render: Callable[[str], str]) -> dict[str, list[dict]]:
    """Return the held-out questions outside the domain, and those among them that resemble questions of the domain."""
    answer = {"reference": OUTSIDE.answer, "keyword": OUTSIDE.keyword}
    texts = {"outside": OUTSIDE.held_out, "near": OUTSIDE.near_held_out}
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
    return [_chat(AUDIO_TAG, f"{answer}\n{AUDIO_TAG}", path, next(spoken_answers[answer])) for path, answer in pairs]


def speak_corpus(out: Path, renderings: Sequence[Rendering], voice_path: Path, threads: int) -> None:
    """Write all missing audio files on several threads; the synthesiser releases Python's lock.

    Noise is drawn from one seeded stream per shard, so an incomplete shard is synthesised again from its beginning.
    """
    shards = [renderings[start : start + SHARD_FILES] for start in range(0, len(renderings), SHARD_FILES)]
    missing = {
        seed: shard for seed, shard in enumerate(shards) if not all((out / item.path).exists() for item in shard)
    }
    num_missing = sum(map(len, missing.values()))
    bar = tqdm(total=len(renderings), initial=len(renderings) - num_missing, desc="speaking", unit="file")

    def speak(seed: int, shard: Sequence[Rendering]) -> None:
        voice = load_voice(voice_path, seed)
        for rendering in shard:
            wave = synthesise(voice, spoken(rendering.text), **rendering.settings)
            if not (out / rendering.path).exists():
                rate = voice.config.sample_rate
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


def write_corpus_files(out: Path, corpus: Corpus) -> None:
    """Write the jsonl files and the mixtures."""
    files = {f"{name}.jsonl": rows for name, rows in corpus.training.items()}
    files |= {f"heldout_{name}.jsonl": rows for name, rows in corpus.held_out.items()}
    for name, rows in files.items():
        write_text(out / name, "".join(json.dumps(row) + "\n" for row in rows))
    for name, ratios in MIXTURES.items():
        entries = {source: {"ratio": ratio, "data_paths": [f"{source}.jsonl"]} for source, ratio in ratios.items()}
        sources = {f"demo_{source}": entry for source, entry in entries.items()}
        write_text(out / f"{name}.yaml", yaml.safe_dump({"dataset": sources}, sort_keys=False))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("make_corpus", __doc__)
    parser.add_argument("--out", type=Path, default=Path("data/demo"), help="folder to write")
    parser.add_argument(
        "--size", choices=tuple(SIZES), default="quick", help="ci takes seconds, quick minutes, demo and long more"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for the training sentences")
    parser.add_argument("--voice", type=Path, help="Piper .onnx file with its .onnx.json next to it (default: joe)")
    parser.add_argument(
        "--threads", type=in_range(int, minimum=1), default=os.cpu_count() or 1, help="synthesis threads"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors("make_corpus"):
        options.out.mkdir(parents=True, exist_ok=True)
        corpus = plan_corpus(options.size, options.seed)
        speak_corpus(options.out, list(corpus.renderings.values()), options.voice or default_voice(), options.threads)
        record_corpus(options.out, corpus.recordings)
        write_corpus_files(options.out, corpus)
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in corpus.training.items())
    print(f"{options.out}: {len(corpus.renderings)} audio files; training samples: {counts}")


if __name__ == "__main__":
    main()
