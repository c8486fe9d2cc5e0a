"""Write the report of a quick start from its evaluations and training stages: report.json, report.md and plots.

    python -m tools.demo.report --evaluation outputs/quickstart/evaluation --codec outputs/quickstart/codec \\
        --stages outputs/quickstart/stage1 outputs/quickstart/stage2 ... --output outputs/quickstart

Reads the output of `evaluation.run`, in all modes and with `--time-alone demo-qa=N`, and the output of
`evaluation.evaluate_codec` on a corpus named heldout. Rates in report.json are fractions. Paths are as given to the
evaluation, usually relative to the repository's root.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from evaluation import evaluate_codec
from evaluation.metrics.ours import corrected_error_rate, scored_tokens
from evaluation.reporting.page import render
from evaluation.results import RESULTS, Answer, Outcome, pooled, read_outcomes
from evaluation.run_folder import read_settings
from evaluation.suites import BENCHMARKS, read_rows
from evaluation.tasks import KEYWORD_LEEWAY, PASSES_PER_TOKEN, SPEED_ALONE, TEXT, TRANSCRIPT
from vita_audio.command_line import OneLineParser
from vita_audio.errors import one_line_errors
from vita_audio.files.atomic import atomic_path, write_json, write_text
from vita_audio.files.checkpoint import read_json
from vita_audio.interleave import MODES, InterleavePlan

TASKS = ("asr", "tts", "qa")  # of the benchmarks demo-asr, ...
HELDOUT = "heldout"  # corpus of the codec's round trip
RATES = ("asr_wer", "tts_wer", "qa_text_accuracy", "qa_speech_accuracy")
MODE_FIELDS = (*RATES, "backbone_passes_per_token", "tokens_per_second")
ANSWER_FIELDS = ("question_wav", "wav", "text", "transcript")
STAGE_FIELDS = ("steps", "minutes", "final_loss", "final_losses")
SILENCE_SECONDS, SILENCE_RATE = 0.5, 22_050  # audio file for answers without speech
TEMPLATE = Path(__file__).with_name("report_template.md")

Part = dict[str, Any]


@dataclass(frozen=True)
class Mode:
    """The evaluation in a mode.

    Attributes:
        outcomes: Outcomes by task.
        questions: Rows of the corpus by id, with the `reference` answer and the novelty of the question, `unseen`.
        ratio: Numbers of text tokens and codes in turn.
        foreign_ratio: Whether that differs from the training data; never for vanilla.
    """

    outcomes: Mapping[str, Outcome]
    questions: Mapping[str, Mapping[str, str]]
    ratio: Sequence[int]
    foreign_ratio: bool

    def spoken(self) -> Iterator[tuple[str, Answer, str]]:
        """Yield the task, the sample and the expected text of each spoken answer."""
        for sample in self.outcomes["tts"].samples:
            yield "tts", sample, sample.item.references[0]
        for sample in self.outcomes["qa"].samples:
            yield "qa", sample, self.questions[sample.item.id]["reference"]

    @cached_property
    def scores(self) -> dict[str, float]:
        """The metrics of the report; error rates and accuracies are fractions."""
        asr, tts, qa = self.outcomes.values()
        answers = [(sample.said, reference) for task, sample, reference in self.spoken() if task == "qa"]
        exact = [scored_tokens(said[TEXT]) == scored_tokens(reference) for said, reference in answers]
        texts, transcripts = zip(*((reference, said[TRANSCRIPT]) for said, reference in answers), strict=True)
        return {
            "asr_wer": asr.metrics["wer"].value,
            "tts_wer": tts.metrics["wer"].value,
            "qa_text_accuracy": qa.metrics["accuracy_text"].value,
            "qa_speech_accuracy": qa.metrics["accuracy_speech"].value,
            "backbone_passes_per_token": pooled([one.speed[PASSES_PER_TOKEN] for one in (asr, tts, qa)]),
            "tokens_per_second": qa.speed[SPEED_ALONE].value,
            "qa_text_exact": fmean(exact),
            "qa_speech_wer": corrected_error_rate(texts, transcripts).value,
            "without_audio": sum(sample.wav is None for _, sample, _ in self.spoken()),
        }

    def text_accuracy(self, unseen: str) -> float | None:
        """Return the share of right text answers to the questions of one novelty, or None if there are none."""
        score = self.outcomes["qa"].scores["accuracy_text"]
        answers = zip(score.ids, score.numerators, strict=True)
        kept = [right for name, right in answers if self.questions[name]["unseen"] == unseen]
        return fmean(kept) if kept else None


def read_modes(evaluation: Path) -> tuple[dict[str, Mode], InterleavePlan]:
    """Return the evaluation in all modes, and the plan that the model was trained with.

    Raises: FileNotFoundError without an evaluation; ValueError if it is not finished or lacks a mode or the speed.
    """
    results = _read_results(evaluation / RESULTS, f"evaluation.run --output {evaluation}")
    trained = InterleavePlan.parse(results["trained_mode"])
    corpus = Path(read_settings(evaluation)["corpus"])
    questions = {row["id"]: row for _, row in read_rows(corpus / BENCHMARKS["demo-qa"].path)}
    modes = {}
    for name, ratio in MODES.items():
        outcomes = read_outcomes(evaluation, [BENCHMARKS[f"demo-{task}"] for task in TASKS], name)
        is_foreign = any(ratio[1::2]) and ratio != trained.ratio
        modes[name] = Mode(dict(zip(TASKS, outcomes, strict=True)), questions, ratio, is_foreign)
        if SPEED_ALONE not in outcomes[-1].speed:
            raise ValueError(
                f"{evaluation} has no speed in mode {name}; run evaluation.run with --time-alone demo-qa=8"
            )
    return modes, trained


def _read_results(path: Path, program: str) -> Part:
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; run python -m {program}")
    return read_json(path)


def pick_answer(mode: Mode, name: str, silence: Path) -> Part:
    """Return the answer to show: to the first question in a held-out phrasing, or else to the first question."""
    samples = mode.outcomes["qa"].samples
    chosen = next((one for one in samples if mode.questions[one.item.id]["unseen"] == "phrasing"), samples[0])
    return {
        "mode": name,
        "question_wav": chosen.item.audio,
        "question_text": chosen.item.text,
        "wav": str(chosen.wav or silence),
        "text": chosen.said[TEXT],
        "transcript": chosen.said[TRANSCRIPT],
        "reference_text": mode.questions[chosen.item.id]["reference"],
    }


def read_codec(folder: Path) -> tuple[Part, list[Part]]:
    """Return the metrics of the codec's round trip, and the clips before and after it with their transcripts.

    Error rates are measured on held-out speech, the use of the codebook on the training data.

    Raises: FileNotFoundError.
    """
    results = _read_results(folder / evaluate_codec.RESULTS, f"evaluation.evaluate_codec --output {folder}")
    heldout, training = results[HELDOUT], results[evaluate_codec.TRAINING]
    round_trip = {field: heldout[field] for field in ("wer", "wer_original")}
    round_trip |= {field: training[field] for field in ("codebook_perplexity", "codebook_size")}
    rows, wavs = heldout["generated"], folder / HELDOUT
    clips = [_generated("original", None, row["original_wav"], row["reference_text"], row["original"]) for row in rows]
    clips += [
        _generated("roundtrip", None, wavs / row["wav"], row["reference_text"], row["transcript"]) for row in rows
    ]
    return round_trip, clips


def _generated(task: str, mode: str | None, wav: str | Path, reference: str, transcript: str) -> Part:
    return {"task": task, "mode": mode, "wav": str(wav), "reference_text": reference, "transcript": transcript}


def build_report(
    modes: Mapping[str, Mode], codec: tuple[Part, list[Part]], answer: Part, stages: Mapping[str, Part], silence: Path
) -> Part:
    """Return the content of report.json."""
    round_trip, clips = codec
    spoken = [
        _generated(task, name, sample.wav or silence, reference, sample.said[TRANSCRIPT])
        for name, mode in modes.items()
        for task, sample, reference in mode.spoken()
    ]
    kept = _generated("answer", *(answer[name] for name in ("mode", "wav", "reference_text", "transcript")))
    return {
        "modes": {
            name: {field: mode.scores[field] for field in MODE_FIELDS} | {"foreign_ratio": mode.foreign_ratio}
            for name, mode in modes.items()
        },
        "roundtrip": round_trip,
        "answer": {field: answer[field] for field in ANSWER_FIELDS},
        "stages": {name: {field: part[field] for field in STAGE_FIELDS} for name, part in stages.items()},
        "generated": [*spoken, *clips, kept],
    }


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("tools.demo.report", __doc__)
    parser.add_argument("--evaluation", required=True, type=Path, help="output folder of evaluation.run")
    parser.add_argument("--codec", required=True, type=Path, help="output folder of evaluation.evaluate_codec")
    parser.add_argument("--stages", required=True, nargs="+", type=Path, help="folders of the training stages")
    parser.add_argument("--output", required=True, type=Path, help="folder for report.json, report.md and the plots")
    parser.add_argument("--note", default="", help="first paragraph of report.md")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)

    from evaluation.reporting.plots import draw_losses, draw_modes, draw_spectrograms
    from vita_audio.training.run_folder import RESULTS_FILE, STATE_FILE

    modes, trained = read_modes(options.evaluation)
    codec = read_codec(options.codec)
    stages = {folder.name: read_json(folder / RESULTS_FILE) for folder in options.stages}
    logs = {folder.name: read_json(folder / STATE_FILE)["log_history"] for folder in options.stages}
    silence = write_silence(options.output / "no_audio.wav")
    name = str(trained) if str(trained) in modes else next(iter(modes))
    answer = pick_answer(modes[name], name, silence)
    report = build_report(modes, codec, answer, stages, silence)
    draw_losses(logs, options.output / "losses.png")
    draw_modes(report["modes"], options.output / "modes.png")
    question, spoken = Path(answer["question_wav"]), Path(answer["wav"])
    sounds = {"question": (question, answer["question_text"]), "answer": (spoken, answer["text"])}
    draw_spectrograms(sounds, options.output / "answer.png")
    values = {"report": report, "modes": modes, "answer": answer, "trained": trained, "note": options.note}
    markdown = render(TEMPLATE, leeway=KEYWORD_LEEWAY, **values)
    write_text(options.output / "report.md", markdown)
    write_json(options.output / "report.json", report)
    print(markdown)


def write_silence(path: Path) -> Path:
    """Write a short silence, and return the path."""
    import numpy as np
    import soundfile

    with atomic_path(path) as partial:
        soundfile.write(partial, np.zeros(round(SILENCE_SECONDS * SILENCE_RATE)), SILENCE_RATE, format="WAV")
    return path


if __name__ == "__main__":
    with one_line_errors("tools.demo.report"):
        main()
