"""Evaluate a model on the held-out part of the demo corpus: recognition, synthesis and spoken questions, in four modes.

    python -m evaluation.demo --model outputs/quickstart/stage4 --corpus outputs/quickstart/corpus \\
        --codes outputs/quickstart/codes --output outputs/quickstart/evaluation

Speech is judged by a recogniser that nobody here trained. Each part (a task in a mode, the codec, one answer to keep)
is a file written when it is done, with what it was made with, so a stopped evaluation continues and results of two
models never mix; `tools.demo.report` makes the report of them. Processes with the same options, started by torchrun or
one by one, share the parts among themselves.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from evaluation.answers import (
    GREEDY,
    SPOKEN_TASKS,
    TASKS,
    Answer,
    Row,
    answer_items,
    conversation_of,
    load_items,
    measure_speed,
    score,
    write_wave,
)
from evaluation.judges import Judge, get_judge
from evaluation.metrics.ours import codebook_perplexity, word_error_rate
from evaluation.processes import Processes, claim_part
from evaluation.progress import progress_bar
from vita_audio.audio_tokenizers import AudioTokenizer, get_audio_tokenizer
from vita_audio.data.audio import load_audio
from vita_audio.data.codes import AudioCodeStore
from vita_audio.data.mixture import load_mixture, referenced_audio
from vita_audio.errors import one_line_errors
from vita_audio.inference.pipeline import SpeechLM
from vita_audio.interleave import MODES, InterleavePlan

ROUND_TRIP, ANSWER, SPEED = "roundtrip", "answer", "speed"
ANSWER_PARTS = {f"{mode}_{task}": (mode, task) for task in ("qa", "tts", "asr") for mode in MODES}
# The long ones first, so that processes that share them end together; the last one has to have the machine for itself.
PARTS = (ROUND_TRIP, *ANSWER_PARTS, ANSWER, SPEED)
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
OTHER_OPTIONS = ("output", "codes", "batch_size")  # those that change no figure


class DemoEvaluation:
    """Model, judge and held-out items, loaded once; `make` makes one part."""

    def __init__(self, options: argparse.Namespace, device: str):
        self.options = options
        self.audio_tokenizer: AudioTokenizer = get_audio_tokenizer(
            options.audio_tokenizer_type, options.audio_tokenizer_path, options.audio_decoder_path, device=device
        )
        self.speech_lm = SpeechLM.from_pretrained(options.model, self.audio_tokenizer, device, torch.float32)
        self.trained_plan = InterleavePlan.parse(self.speech_lm.model.generation_config.mtp_inference_mode)
        self.judge: Judge = get_judge(options.judge)
        counts = {"asr": options.num_asr, "tts": options.num_tts, "qa": options.num_qa}
        self.items = {task: load_items(options.corpus, task, count) for task, count in counts.items()}

    def make(self, part: str) -> Row:
        if part == ROUND_TRIP:
            return self.round_trip()
        if part == SPEED:
            return self.speed()
        return self.answer() if part == ANSWER else self.task_answers(*ANSWER_PARTS[part])

    def task_answers(self, mode: str, task: str) -> Row:
        """Judged answers of one task; only the backbone alone can follow a ratio that it was not trained with."""
        options, plan, rows = self.options, InterleavePlan.parse(mode), self.items[task]
        answers = answer_items(
            self.speech_lm,
            rows,
            mode,
            judge=self.judge,
            folder=options.output / "audio" / mode / task,
            batch_size=options.batch_size,
            max_new_tokens=options.max_new_tokens,
        )
        return {
            "judge": self.judge.name,
            "trained_ratio": list(self.trained_plan.ratio),
            "foreign_ratio": any(plan.ratio[1::2]) and plan != self.trained_plan,
            "answers": [asdict(answer) for answer in answers],
        }

    def speed(self) -> Row:
        """Tokens per second of each mode, one question at a time."""
        limit = self.options.max_new_tokens
        return {mode: measure_speed(self.speech_lm, self.items["qa"], mode, limit) for mode in MODES}

    def round_trip(self) -> Row:
        """What the judge understands of held-out speech before and after the codec, and the codebook's use.

        The use is that of the training data, which has enough codes to tell.
        """
        rate = self.audio_tokenizer.output_rate
        rows = load_items(self.options.corpus, "asr", self.options.num_roundtrip)
        originals = [load_audio(row["audio"], rate) for row in rows]
        bar = progress_bar(originals, desc="codec", unit="clip")
        decoded = [self.audio_tokenizer.decode(self.audio_tokenizer.encode(wave, rate)) for wave in bar]
        folder = self.options.output / "audio" / ROUND_TRIP
        paths = [write_wave(folder / f"{row['id']}.wav", wave, rate) for row, wave in zip(rows, decoded, strict=True)]
        references, generated, rates = [row["reference"] for row in rows], [], {}
        for task, waves, wavs in (
            ("original", originals, [row["audio"] for row in rows]),
            (ROUND_TRIP, decoded, paths),
        ):
            transcripts = self.judge.transcribe([(wave, rate) for wave in waves], progress=f"{task} judged")
            rates[task] = word_error_rate(references, transcripts)
            generated += [
                {"task": task, "mode": None, "wav": wav, "reference_text": reference, "transcript": transcript}
                for wav, reference, transcript in zip(wavs, references, transcripts, strict=True)
            ]
        store = AudioCodeStore(self.options.codes, self.audio_tokenizer.fingerprint, read_only=True)
        roles = self.speech_lm.tokenizer.discrete_roles
        trained_on = referenced_audio(load_mixture(self.options.corpus / "stage1.yaml"), roles)
        num_codes = self.audio_tokenizer.vocab_size
        return {
            "wer": rates[ROUND_TRIP],
            "wer_original": rates["original"],
            "codebook_perplexity": codebook_perplexity(map(store.codes, trained_on), num_codes),
            "codebook_size": num_codes,
            "generated": generated,
        }

    def answer(self) -> Row:
        """Answer the first question, if possible in a phrasing that training never met; keep question and answer."""
        questions = self.items["qa"]
        row = next((row for row in questions if row["unseen"] == "phrasing"), questions[0])
        rate, folder = self.audio_tokenizer.output_rate, self.options.output / ANSWER
        options = {"max_new_tokens": self.options.max_new_tokens, **GREEDY}
        response = self.speech_lm.respond(conversation_of(row), self.trained_plan, **options)
        return {
            "mode": str(self.trained_plan),
            "question_wav": write_wave(folder / "question.wav", load_audio(row["audio"], rate), rate),
            "question_text": row["text"],
            "wav": write_wave(folder / "answer.wav", response.wave, rate),
            "text": response.text.strip(),
            "transcript": self.judge.transcribe([(response.wave, rate)])[0],
            "reference_text": row["reference"],
        }


def spoken_answers(modes: dict[str, Row]) -> list[Row]:
    """Return the judged answers of all modes."""
    return [row for part in modes.values() for row in part["answers"] if row["task"] in SPOKEN_TASKS]


def read_part(folder: Path, part: str) -> Row:
    """Return a finished part.

    Raises: FileNotFoundError that says how to make it.
    """
    path = folder / f"{part}.json"
    if not path.exists():
        raise FileNotFoundError(f"no {path}; run python -m evaluation.demo --output {folder}")
    return json.loads(path.read_text(encoding="utf-8"))


def read_mode(folder: Path, mode: str) -> Row:
    """Return the scores and answers of a mode, all tasks together.

    Raises: FileNotFoundError that says how to make what is missing.
    """
    parts = [read_part(folder, f"{mode}_{task}") for task in TASKS]
    answers = [row for part in parts for row in part["answers"]]
    speed = {"tokens_per_second": read_part(folder, SPEED)[mode]}
    return parts[0] | {"answers": answers, "scores": score([Answer(**row) for row in answers]) | speed}


def settings_of(options: argparse.Namespace) -> Row:
    """Return what decides the figures, as JSON values; weights are known by their files."""
    options = {name: value for name, value in vars(options).items() if name not in OTHER_OPTIONS}
    files = sorted(path for form in WEIGHTS for path in options["model"].glob(form))
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return settings | {"weights": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]}


def check_parts(folder: Path, parts: Iterable[str], settings: Row) -> None:
    """Raise ValueError if a finished part was made with other settings."""
    for part in sorted(parts):
        earlier = read_part(folder, part).get("settings", {})
        if changed := [name for name in settings if settings[name] != earlier.get(name)]:
            raise ValueError(
                f"{folder / part}.json was made with other settings ({', '.join(changed)}); choose another --output, "
                "or delete what is there"
            )


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all: what is there is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def at_least_one(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder of the trained model")
    parser.add_argument("--corpus", required=True, type=Path, help="folder of tools/demo/make_corpus.py")
    parser.add_argument("--codes", required=True, type=Path, help="code store of the corpus, for the codebook's use")
    parser.add_argument("--output", required=True, type=Path, help="folder for the results")
    parser.add_argument("--audio-tokenizer-type", default="glm4voice")
    parser.add_argument("--audio-tokenizer-path", help="folder of its weights (default: the embedded ones)")
    parser.add_argument("--audio-decoder-path", help="folder of the speech decoder (default: the embedded one)")
    parser.add_argument("--judge", default="whisper_tiny_en", help="name of a judge, or folder of a Whisper model")
    parser.add_argument("--num-asr", type=at_least_one, default=60, help="held-out items (default: %(default)s)")
    parser.add_argument("--num-tts", type=at_least_one, default=30)
    parser.add_argument("--num-qa", type=at_least_one, default=60)
    parser.add_argument("--num-roundtrip", type=at_least_one, default=40)
    parser.add_argument("--batch-size", type=at_least_one, default=20)
    parser.add_argument("--max-new-tokens", type=at_least_one, default=200, help="longest answer that is waited for")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    processes = Processes()
    settings = settings_of(options)
    missing = [part for part in PARTS if not (options.output / f"{part}.json").exists()]
    check_parts(options.output, {*PARTS} - {*missing}, settings)
    if not missing:
        if processes.rank == 0:
            print(f"evaluated already: {options.output}")
        return
    evaluation = DemoEvaluation(options, processes.device("auto"))
    # First what nobody works on; then what others have not finished, so that all is there when any process ends.
    turns = [(part, False) for part in missing if part != SPEED] + [(part, True) for part in missing]
    for part, wait in turns:
        path = options.output / f"{part}.json"
        with claim_part(options.output, part, wait=wait) as is_ours:
            if is_ours and not path.exists():
                write_json(path, evaluation.make(part) | {"settings": settings})
    check_parts(options.output, PARTS, settings)  # others may have made some meanwhile


if __name__ == "__main__":
    with one_line_errors("evaluation.demo"):
        main()
