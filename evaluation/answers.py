"""Let a model answer the held-out items of the demo corpus, let a judge listen, and score what came.

Decoding is greedy. An answer without audio is an empty transcript, so it is wrong as a whole. A question is answered
rightly if the text, or the transcript, ends with the keyword of its answer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor

from evaluation.judges import Judge
from evaluation.metrics.ours import contains_answer, normalise, word_error_rate
from evaluation.progress import progress_bar
from vita_audio.data.mixture import resolve
from vita_audio.inference.pipeline import GREEDY, Response, SpeechLM
from vita_audio.inference.tasks import Sample, asr_conversation, sts_conversation, tts_conversation

TASKS = ("asr", "tts", "qa")
SPOKEN_TASKS = ("tts", "qa")
KEYWORD_LEEWAY = 1  # words that may follow the keyword of an answer
SILENCE_SECONDS = 0.5  # written for an answer without audio, so that every spoken answer has a file
SPEED_ITEMS = 8  # answered one at a time for the speed

Row = dict[str, Any]


@dataclass
class Answer:
    """What a model said to one held-out item, and what the judge heard; `keyword` and `unseen` of questions only."""

    id: str
    task: str
    mode: str
    reference: str
    text: str
    num_tokens: int
    num_backbone_passes: int
    keyword: str | None = None
    unseen: str | None = None
    has_audio: bool = False
    wav: str | None = None
    transcript: str = ""
    text_right: bool | None = None
    speech_right: bool | None = None


def load_items(corpus: Path, task: str, count: int) -> list[Row]:
    """Return `count` held-out rows, or all there are, drawn with a fixed seed; audio paths are resolved.

    Raises: FileNotFoundError; ValueError if there is none.
    """
    path = corpus / f"heldout_{task}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    if not rows:
        raise ValueError(f"{path} must have a row, got none; make the corpus again with tools/demo/make_corpus.py")
    chosen = sorted(random.Random(0).sample(range(len(rows)), min(count, len(rows))))
    return [rows[index] | {"audio": str(resolve(rows[index]["audio"], corpus))} for index in chosen]


def conversation_of(row: Row) -> Sample:
    if row["task"] == "asr":
        return asr_conversation(row["audio"])
    return tts_conversation(row["text"]) if row["task"] == "tts" else sts_conversation(row["audio"])


def write_wave(path: Path, wave: Tensor, rate: int) -> str:
    """Write a wave, or a short silence if it is empty, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, (wave if len(wave) else torch.zeros(round(SILENCE_SECONDS * rate))).numpy(), rate)
    return str(path)


def answer_items(
    speech_lm: SpeechLM,
    rows: Sequence[Row],
    mode: str,
    *,
    judge: Judge,
    folder: Path,
    batch_size: int,
    max_new_tokens: int,
) -> list[Answer]:
    """Return the judged answers to held-out items of one task; spoken ones are written to `folder`."""
    speaks = rows[0]["task"] in SPOKEN_TASKS
    name = f"{mode} {rows[0]['task']}"
    responses: list[Response] = []
    with progress_bar(total=len(rows), desc=name, unit="answer") as bar:
        for start in range(0, len(rows), batch_size):
            batch = [conversation_of(row) for row in rows[start : start + batch_size]]
            options = {"decode_audio": speaks, "max_new_tokens": max_new_tokens, **GREEDY}
            responses += speech_lm.respond_batch(batch, mode, **options)
            bar.update(len(batch))
    answers = [_answer(row, mode, response) for row, response in zip(rows, responses, strict=True)]
    if speaks:
        sounds = [(response.wave, response.sample_rate) for response in responses]
        transcripts = judge.transcribe(sounds, progress=f"{name} judged")
        for answer, sound, transcript in zip(answers, sounds, transcripts, strict=True):
            answer.wav = write_wave(folder / f"{answer.id}.wav", *sound)
            answer.transcript = transcript
    for answer in answers:
        if answer.keyword is not None:
            answer.text_right, answer.speech_right = (
                _is_right(answer, answer.text),
                _is_right(answer, answer.transcript),
            )
    return answers


def _answer(row: Row, mode: str, response: Response) -> Answer:
    return Answer(
        id=row["id"],
        task=row["task"],
        mode=mode,
        reference=row["reference"],
        text=response.text.strip(),
        num_tokens=response.timings.num_tokens,
        num_backbone_passes=response.timings.num_backbone_passes,
        keyword=row.get("keyword"),
        unseen=row.get("unseen"),
        has_audio=bool(response.codes),
    )


def _is_right(answer: Answer, said: str) -> bool:
    return contains_answer(said, answer.keyword, len(normalise(answer.keyword).split()) + KEYWORD_LEEWAY)


def measure_speed(speech_lm: SpeechLM, rows: Sequence[Row], mode: str, max_new_tokens: int) -> float:
    """Return tokens per second of the language model, one item at a time."""
    options = {"decode_audio": False, "max_new_tokens": max_new_tokens, **GREEDY}
    speech_lm.respond(conversation_of(rows[0]), mode, **options)  # the first call is slower
    timings = [speech_lm.respond(conversation_of(row), mode, **options).timings for row in rows[:SPEED_ITEMS]]
    return sum(timing.num_tokens for timing in timings) / sum(timing.generate_seconds for timing in timings)


def score(answers: Sequence[Answer]) -> dict[str, float]:
    """Return the figures of one mode; error rates and accuracies are fractions."""
    asr, tts, qa = ([answer for answer in answers if answer.task == task] for task in TASKS)
    return {
        "asr_wer": word_error_rate([answer.reference for answer in asr], [answer.text for answer in asr]),
        "tts_wer": word_error_rate([answer.reference for answer in tts], [answer.transcript for answer in tts]),
        "qa_text_accuracy": share(answer.text_right for answer in qa),
        "qa_speech_accuracy": share(answer.speech_right for answer in qa),
        "backbone_passes_per_token": sum(answer.num_backbone_passes for answer in answers)
        / sum(answer.num_tokens for answer in answers),
        "qa_text_exact": share(normalise(answer.text) == normalise(answer.reference) for answer in qa),
        "qa_speech_wer": word_error_rate([answer.reference for answer in qa], [answer.transcript for answer in qa]),
        "without_audio": sum(not answer.has_audio for answer in (*tts, *qa)),
    }


def share(outcomes: Iterable[bool]) -> float:
    """Return the fraction that is true; raises ZeroDivisionError for none."""
    outcomes = list(outcomes)
    return sum(outcomes) / len(outcomes)
