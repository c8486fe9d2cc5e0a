"""Evaluate a model on the held-out part of the demo corpus: recognition, synthesis and spoken questions, in four modes.

    python -m evaluation.demo --model outputs/quickstart/stage4 --corpus outputs/quickstart/corpus \\
        --codes outputs/quickstart/codes --output outputs/quickstart/evaluation

Decoding is greedy. Speech is judged by a recogniser that nobody here trained, its texts and the references normalised
alike. An answer without audio is an empty transcript. A question is answered rightly if the keyword of its answer is
among the first words of the text, or of the transcript. Each part is written when it is done, so a stopped evaluation
continues; evaluation.report makes the report from the parts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from evaluation.judges import Judge, get_judge
from evaluation.metrics import codebook_perplexity, contains_answer, normalise, word_error_rate
from vita_audio.audio_tokenizers import AudioTokenizer, get_audio_tokenizer
from vita_audio.data.audio import load_audio
from vita_audio.data.codes import AudioCodeStore
from vita_audio.data.mixture import load_mixture, referenced_audio, resolve
from vita_audio.inference.pipeline import Response, SpeechLM
from vita_audio.inference.tasks import Conversation, asr_conversation, sts_conversation, tts_conversation
from vita_audio.interleave import MODES, InterleavePlan

TASKS = ("asr", "tts", "qa")
SPOKEN_TASKS = ("tts", "qa")
GREEDY = {"do_sample": False, "repetition_penalty": 1.0, "temperature": None, "top_k": None, "top_p": None}
KEYWORD_LEEWAY = 2  # words that may stand before the keyword of an answer
SILENCE_SECONDS = 0.5  # written for an answer without audio, so that every answer has a file
SPEED_ITEMS = 8  # questions answered one at a time for the speed

Row = dict[str, Any]


@dataclass
class Answer:
    """What a model said to one held-out item, and what the judge heard."""

    id: str
    task: str
    mode: str
    reference: str
    text: str
    num_tokens: int
    num_backbone_passes: int
    keyword: str | None = None
    unseen: str | None = None
    wav: str | None = None
    has_audio: bool = False
    transcript: str = ""

    def is_right(self, said: str) -> bool:
        """Say whether the keyword is among the first words of `said`."""
        return contains_answer(said, self.keyword, len(normalise(self.keyword).split()) + KEYWORD_LEEWAY)


def load_items(corpus: Path, task: str, count: int) -> list[Row]:
    """Return `count` held-out rows, or all there are, drawn with a fixed seed; audio paths are resolved."""
    lines = (corpus / f"heldout_{task}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    chosen = sorted(random.Random(0).sample(range(len(rows)), min(count, len(rows))))
    return [rows[index] | {"audio": str(resolve(rows[index]["audio"], corpus))} for index in chosen]


def conversation_of(row: Row) -> Conversation:
    if row["task"] == "asr":
        return asr_conversation(row["audio"])
    return tts_conversation(row["text"]) if row["task"] == "tts" else sts_conversation(row["audio"])


def write_wave(path: Path, wave: Tensor, rate: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave.numpy() if len(wave) else torch.zeros(round(SILENCE_SECONDS * rate)).numpy(), rate)
    return str(path)


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all: what is there is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def answer_items(
    speech_lm: SpeechLM, rows: Sequence[Row], mode: str, folder: Path, *, batch_size: int, max_new_tokens: int
) -> tuple[list[Answer], list[Response]]:
    """Let the model answer held-out items of one task in batches; spoken answers are written to `folder`."""
    answers, responses = [], []
    with tqdm(total=len(rows), desc=f"{mode} {rows[0]['task']}", unit="answer") as bar:
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            speaks = batch[0]["task"] in SPOKEN_TASKS
            batch_responses = speech_lm.respond_batch(
                [conversation_of(row) for row in batch],
                mode,
                decode_audio=speaks,
                max_new_tokens=max_new_tokens,
                **GREEDY,
            )
            for row, response in zip(batch, batch_responses, strict=True):
                answer = _answer(row, mode, response)
                if speaks:
                    answer.wav = write_wave(folder / f"{answer.id}.wav", response.wave, response.sample_rate)
                answers.append(answer)
            responses += batch_responses
            bar.update(len(batch))
    return answers, responses


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


def judge_answers(judge: Judge, answers: Sequence[Answer], responses: Sequence[Response], progress: str) -> None:
    """Write down what the judge hears; nothing where there is no audio."""
    sounds = [(response.wave, response.sample_rate) for response in responses]
    for answer, transcript in zip(answers, judge.transcribe(sounds, progress=progress), strict=True):
        answer.transcript = transcript


def measure_speed(speech_lm: SpeechLM, rows: Sequence[Row], mode: str, max_new_tokens: int) -> float:
    """Return tokens per second of the language model, one question at a time."""
    options = {"decode_audio": False, "max_new_tokens": max_new_tokens, **GREEDY}
    speech_lm.respond(conversation_of(rows[0]), mode, **options)  # the first call is slower
    timings = [speech_lm.respond(conversation_of(row), mode, **options).timings for row in rows[:SPEED_ITEMS]]
    return sum(timing.num_tokens for timing in timings) / sum(timing.generate_seconds for timing in timings)


def evaluate_mode(speech_lm: SpeechLM, judge: Judge, items: dict[str, list[Row]], mode: str, options) -> Row:
    """Return scores and answers of one mode."""
    answers: list[Answer] = []
    for task, rows in items.items():
        limits = {"batch_size": options.batch_size, "max_new_tokens": options.max_new_tokens}
        some, responses = answer_items(speech_lm, rows, mode, options.output / "audio" / mode / task, **limits)
        if task in SPOKEN_TASKS:
            judge_answers(judge, some, responses, f"{mode} {task} judged")
        answers += some
    speed = measure_speed(speech_lm, items["qa"], mode, options.max_new_tokens)
    return {"scores": score(answers) | {"tokens_per_second": speed}, "answers": [asdict(answer) for answer in answers]}


def score(answers: Sequence[Answer]) -> dict[str, float]:
    """Return the figures of one mode; all but the number of passes are fractions. Speech without audio is all wrong."""
    asr, tts, qa = ([answer for answer in answers if answer.task == task] for task in TASKS)
    return {
        "asr_wer": word_error_rate([answer.reference for answer in asr], [answer.text for answer in asr]),
        "tts_wer": word_error_rate([answer.reference for answer in tts], [answer.transcript for answer in tts]),
        "qa_text_accuracy": _share(answer.is_right(answer.text) for answer in qa),
        "qa_speech_accuracy": _share(answer.is_right(answer.transcript) for answer in qa),
        "backbone_passes_per_token": sum(answer.num_backbone_passes for answer in answers)
        / sum(answer.num_tokens for answer in answers),
        "qa_text_exact": _share(normalise(answer.text) == normalise(answer.reference) for answer in qa),
        "qa_speech_wer": word_error_rate([answer.reference for answer in qa], [answer.transcript for answer in qa]),
        "without_audio": sum(not answer.has_audio for answer in (*tts, *qa)),
    }


def _share(outcomes) -> float:
    outcomes = list(outcomes)
    return sum(outcomes) / len(outcomes)


def round_trip(
    audio_tokenizer: AudioTokenizer, judge: Judge, rows: Sequence[Row], store: AudioCodeStore, options
) -> Row:
    """Send held-out speech through the codec and compare what the judge understands before and after."""
    clips = [row["audio"] for row in rows]
    originals = [load_audio(clip, audio_tokenizer.output_rate) for clip in clips]
    decoded = [
        audio_tokenizer.decode(audio_tokenizer.encode(wave, audio_tokenizer.output_rate))
        for wave in tqdm(originals, desc="codec", unit="clip")
    ]
    rate, references = audio_tokenizer.output_rate, [row["reference"] for row in rows]
    result: Row = {"generated": []}
    for task, waves, paths in (
        ("original", originals, clips),
        ("roundtrip", decoded, [options.output / "audio" / "roundtrip" / f"{row['id']}.wav" for row in rows]),
    ):
        if task == "roundtrip":
            paths = [write_wave(path, wave, rate) for path, wave in zip(paths, waves, strict=True)]
        transcripts = judge.transcribe([(wave, rate) for wave in waves], progress=f"{task} judged")
        result["wer" if task == "roundtrip" else "wer_original"] = word_error_rate(references, transcripts)
        result["generated"] += [
            {"task": task, "mode": None, "wav": path, "reference_text": reference, "transcript": transcript}
            for path, reference, transcript in zip(paths, references, transcripts, strict=True)
        ]
    trained_on = referenced_audio(load_mixture(options.corpus / "stage1.yaml"))
    result["codebook_perplexity"] = codebook_perplexity(map(store.codes, trained_on), audio_tokenizer.vocab_size)
    result["codebook_size"] = audio_tokenizer.vocab_size
    return result


def answer_aloud(speech_lm: SpeechLM, judge: Judge, row: Row, mode: str, options) -> Row:
    """Answer one spoken question and keep question, answer and transcript."""
    folder = options.output.parent / "answer"
    question = load_audio(row["audio"], speech_lm.audio_tokenizer.output_rate)
    response = speech_lm.respond(conversation_of(row), mode, max_new_tokens=options.max_new_tokens, **GREEDY)
    transcript = judge.transcribe([(response.wave, response.sample_rate)])[0]
    return {
        "question_wav": write_wave(folder / "question.wav", question, speech_lm.audio_tokenizer.output_rate),
        "question_text": row["text"],
        "wav": write_wave(folder / "answer.wav", response.wave, response.sample_rate),
        "text": response.text.strip(),
        "transcript": transcript,
        "reference_text": row["reference"],
        "mode": mode,
    }


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder of the trained model")
    parser.add_argument("--corpus", required=True, type=Path, help="folder of tools/make_demo_corpus.py")
    parser.add_argument("--codes", required=True, type=Path, help="code store of the corpus, for the codebook's use")
    parser.add_argument("--output", required=True, type=Path, help="folder for the results")
    parser.add_argument("--audio-tokenizer-type", default="glm4voice")
    parser.add_argument("--audio-tokenizer-path", help="folder of its weights (default: the embedded ones)")
    parser.add_argument("--audio-decoder-path", help="folder of the speech decoder (default: the embedded one)")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--judge", default="whisper_tiny_en", help="name of a judge, or folder of a Whisper model")
    parser.add_argument("--num-asr", type=int, default=60, help="held-out items (default: %(default)s)")
    parser.add_argument("--num-tts", type=int, default=30)
    parser.add_argument("--num-qa", type=int, default=60)
    parser.add_argument("--num-roundtrip", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--max-new-tokens", type=int, default=200, help="longest answer that is waited for")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    transformers_logging.set_verbosity_error()
    parts = [*options.modes, "roundtrip", "answer"]
    if all((options.output / f"{part}.json").exists() for part in parts):
        print(f"evaluated already: {options.output}")
        return
    audio_tokenizer = get_audio_tokenizer(
        options.audio_tokenizer_type, options.audio_tokenizer_path, options.audio_decoder_path
    )
    speech_lm = SpeechLM.from_pretrained(options.model, audio_tokenizer, device="cpu", dtype=torch.float32)
    trained_plan = InterleavePlan.parse(speech_lm.model.generation_config.mtp_inference_mode)
    judge = get_judge(options.judge)
    counts = {"asr": options.num_asr, "tts": options.num_tts, "qa": options.num_qa}
    items = {task: load_items(options.corpus, task, count) for task, count in counts.items()}

    def make_part(part: str) -> Row:
        if part == "roundtrip":
            store = AudioCodeStore(options.codes, audio_tokenizer.fingerprint)
            rows = load_items(options.corpus, "asr", options.num_roundtrip)
            return round_trip(audio_tokenizer, judge, rows, store, options)
        if part == "answer":
            question = next(row for row in items["qa"] if row["unseen"] == "phrasing")
            return answer_aloud(speech_lm, judge, question, str(trained_plan), options)
        foreign = MODES[part][1] > 0 and InterleavePlan(MODES[part]) != trained_plan
        result = evaluate_mode(speech_lm, judge, items, part, options)
        return {"foreign_ratio": foreign, "trained_ratio": list(trained_plan.ratio), "judge": judge.name, **result}

    for part in parts:
        path = options.output / f"{part}.json"
        if not path.exists():
            write_json(path, make_part(part))


if __name__ == "__main__":
    main()
