"""Make the demo corpus: the demo domain spoken by a Piper voice, in the training formats, with held-out files.

    python -m tools.demo.make_corpus --out data/demo --size quick

Writes audio/{train,heldout}/*.flac, {asr,tts,qa,text}.jsonl for training, heldout_{asr,tts,qa}.jsonl for evaluation,
and one mixture yaml each for stage 1, the MTP stages and the last stage. Paths in the files are relative to the folder,
which may be moved. The same arguments give the same files. An interrupted run can be continued; a finished one exits
immediately.
"""

import argparse
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from tqdm import tqdm

from tools.common.synthetic_speech import default_voice, load_voice, synthesise, trim_silence, write_flac
from tools.demo.domain import SIZES, Question, corpus_size, heldout_sentences, questions, spoken, training_sentences
from vita_audio.command_line import OneLineParser, in_range
from vita_audio.constants import AUDIO_TAG
from vita_audio.errors import one_line_errors
from vita_audio.files.atomic import write_text
from vita_audio.text import ASR_PROMPT, TTS_PROMPT

MIXTURES = {  # yaml name -> {jsonl: ratio}
    # Questions are few. At a ratio of 1, models confuse them, and MTP modules garble the words of answers.
    "stage1": {"asr": 1, "tts": 1, "qa": 2, "text": 1},
    # Includes recognition, because MTP modules decode it too.
    "mtp": {"asr": 1, "tts": 1, "qa": 3},
    "stage4": {"asr": 1, "tts": 1, "qa": 3, "text": 1},
}
PEAK = 0.8
SHARD_FILES = 64  # files spoken by one synthesiser session, which has one seed


@dataclass(frozen=True)
class Rendering:
    """One way to speak a text; file name and Piper settings are determined by text, number and folder.

    Attributes:
        path: File, relative to the corpus folder.
    """

    text: str
    path: Path
    length_scale: float
    noise_scale: float
    noise_w_scale: float


@dataclass
class Corpus:
    """Renderings to speak, and the samples made of them.

    Attributes:
        renderings: By path.
        training: Training samples of each jsonl file.
        held_out: Evaluation items of each jsonl file.
    """

    renderings: dict[Path, Rendering] = field(default_factory=dict)
    training: dict[str, list[dict]] = field(default_factory=dict)
    held_out: dict[str, list[dict]] = field(default_factory=dict)


def plan_corpus(size: str, seed: int = 0) -> Corpus:
    """Decide on every file and every sample without making any.

    Args:
        size: Key of `tools.demo.domain.SIZES`.
        seed: Seed for the training sentences; held-out texts are the same for all seeds.
    """
    counts, corpus = corpus_size(size), Corpus()

    def speak(text: str, number: int, part: str) -> str:
        rendering = _rendering(Path("audio") / part, text, number)
        corpus.renderings[rendering.path] = rendering
        return rendering.path.as_posix()

    def speak_often(texts: Iterable[str], times: int) -> list[tuple[str, str]]:
        return [(text, speak(text, number, "train")) for text in texts for number in range(times)]

    asked = questions(size)
    sentences = speak_often(training_sentences(size, seed), counts.sentence_renderings)
    answers = speak_often((question.answer for question in asked), counts.answer_renderings)
    asked_aloud = speak_often(
        (phrasing for question in asked for phrasing in question.phrasings), counts.question_renderings
    )
    corpus.training = {
        "asr": [_asr_sample(text, path) for text, path in sentences + asked_aloud + answers],
        "tts": [_tts_sample(text, path) for text, path in sentences + answers],
        "qa": _qa_samples(asked, asked_aloud, answers),
        "text": [_chat(phrasing, question.answer) for question in asked for phrasing in question.phrasings],
    }
    corpus.held_out = _held_out_rows(heldout_sentences(size), asked, lambda text: speak(text, 0, "heldout"))
    return corpus


def _held_out_rows(
    sentences: Sequence[str], asked: Sequence[Question], speak: Callable[[str], str]
) -> dict[str, list[dict]]:
    """Return items for evaluation, with every question in a phrasing known from training and in its held-out one."""
    wordings = [("rendering", index, item.phrasings[0], item) for index, item in enumerate(asked)]
    wordings += [("phrasing", index, item.held_out_phrasing, item) for index, item in enumerate(asked)]
    heard = [(index, text, speak(text)) for index, text in enumerate(sentences)]
    return {
        "asr": [{"id": f"asr-{index}", "task": "asr", "audio": path, "reference": text} for index, text, path in heard],
        "tts": [
            {"id": f"tts-{index}", "task": "tts", "text": text, "audio": path, "reference": text}
            for index, text, path in heard
        ],
        "qa": [
            {
                "id": f"qa-{index}-{unseen}",
                "task": "qa",
                "audio": speak(text),
                "text": text,
                "reference": item.answer,
                "keyword": item.keyword,
                "unseen": unseen,
            }
            for unseen, index, text, item in wordings
        ],
    }


def _rendering(folder: Path, text: str, number: int) -> Rendering:
    digest = hashlib.sha1(f"{folder.name} {number} {text}".encode()).hexdigest()
    rng = random.Random(digest)
    return Rendering(
        text=text,
        path=folder / f"{text.replace(' ', '_')}-{number}-{digest[:6]}.flac",
        length_scale=round(rng.uniform(1.0, 1.2), 3),
        noise_scale=round(rng.uniform(0.4, 0.7), 3),
        noise_w_scale=round(rng.uniform(0.5, 0.8), 3),
    )


def _chat(user: str, assistant: str, audios: Sequence[str] = ()) -> dict:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"messages": messages, "audios": list(audios)} if audios else {"messages": messages}


def _asr_sample(text: str, path: str) -> dict:
    return _chat(f"{ASR_PROMPT}\n{AUDIO_TAG}", text, [path])


def _tts_sample(text: str, path: str) -> dict:
    return _chat(TTS_PROMPT + text, AUDIO_TAG, [path])


def _qa_samples(
    asked: Sequence[Question], asked_aloud: Sequence[tuple[str, str]], answers: Sequence[tuple[str, str]]
) -> list[dict]:
    """Return a sample for every spoken question, using the renderings of its answer in turn."""
    answer_of = {phrasing: question.answer for question in asked for phrasing in question.phrasings}
    spoken_answers: dict[str, list[str]] = {}
    for text, path in answers:
        spoken_answers.setdefault(text, []).append(path)
    samples, used = [], dict.fromkeys(spoken_answers, 0)
    for text, path in asked_aloud:
        answer = answer_of[text]
        choices = spoken_answers[answer]
        samples.append(_chat(AUDIO_TAG, f"{answer}\n{AUDIO_TAG}", [path, choices[used[answer] % len(choices)]]))
        used[answer] += 1
    return samples


def speak_shard(
    out: Path, renderings: Sequence[Rendering], *, voice_path: Path, seed: int, spoken_one: Callable[[], object]
) -> None:
    """Speak the renderings in order and write the files that are missing; call `spoken_one` after each.

    The synthesiser draws its noise from one seeded stream, so a shard is always spoken from its beginning.
    """
    voice = load_voice(voice_path, seed)
    for rendering in renderings:
        wave = synthesise(
            voice,
            spoken(rendering.text),
            length_scale=rendering.length_scale,
            noise_scale=rendering.noise_scale,
            noise_w_scale=rendering.noise_w_scale,
        )
        if not (out / rendering.path).exists():
            rate = voice.config.sample_rate
            write_flac(out / rendering.path, trim_silence(wave, rate) * PEAK, rate)
        spoken_one()


def speak_corpus(out: Path, renderings: Sequence[Rendering], voice_path: Path, threads: int) -> None:
    """Write all missing audio files, in shards on several threads; the synthesiser releases Python's lock."""
    for folder in {out / rendering.path.parent for rendering in renderings}:
        folder.mkdir(parents=True, exist_ok=True)
    shards = [renderings[start : start + SHARD_FILES] for start in range(0, len(renderings), SHARD_FILES)]
    missing = [
        (seed, shard)
        for seed, shard in enumerate(shards)
        if not all((out / rendering.path).exists() for rendering in shard)
    ]
    num_missing = sum(len(shard) for _, shard in missing)
    bar = tqdm(total=len(renderings), initial=len(renderings) - num_missing, desc="speaking", unit="file")
    with bar, ThreadPoolExecutor(threads) as pool:
        jobs = [
            pool.submit(speak_shard, out, shard, voice_path=voice_path, seed=seed, spoken_one=bar.update)
            for seed, shard in missing
        ]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def write_corpus_files(out: Path, corpus: Corpus) -> None:
    """Write the jsonl files and the mixtures."""
    files = {f"{name}.jsonl": rows for name, rows in corpus.training.items()}
    files |= {f"heldout_{name}.jsonl": rows for name, rows in corpus.held_out.items()}
    for name, rows in files.items():
        write_text(out / name, "".join(json.dumps(row) + "\n" for row in rows))
    for name, ratios in MIXTURES.items():
        sources = {
            f"demo_{source}": {"ratio": ratio, "data_paths": [f"{source}.jsonl"]} for source, ratio in ratios.items()
        }
        write_text(out / f"{name}.yaml", yaml.safe_dump({"dataset": sources}, sort_keys=False))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("make_corpus", __doc__)
    parser.add_argument("--out", type=Path, default=Path("data/demo"), help="folder to write")
    parser.add_argument(
        "--size", choices=tuple(SIZES), default="quick", help="ci takes seconds, quick minutes, long five times as many"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for the training sentences")
    parser.add_argument("--voice", type=Path, help="Piper .onnx file with its .onnx.json next to it (default: joe)")
    parser.add_argument(
        "--threads", type=in_range(int, minimum=1), default=os.cpu_count() or 1, help="threads that speak"
    )
    return parser.parse_args(arguments)


def make_corpus(options: argparse.Namespace) -> None:
    """Speak and write the corpus that the options describe."""
    corpus = plan_corpus(options.size, options.seed)
    speak_corpus(options.out, list(corpus.renderings.values()), options.voice or default_voice(), options.threads)
    write_corpus_files(options.out, corpus)
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in corpus.training.items())
    print(f"{options.out}: {len(corpus.renderings)} audio files; training samples: {counts}")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors("make_corpus"):
        make_corpus(options)


if __name__ == "__main__":
    main()
