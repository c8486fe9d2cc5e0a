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
from evaluation.reporting.page import Table
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
MODE_HEADER = ("mode", "ASR WER", "TTS WER", "QA text", "QA speech", "passes/token", "tokens/s", "no audio")
QUESTION_HEADER = ("mode", "QA text, known phrasing", "QA text, new phrasing", "whole answer exact", "QA speech WER")
ROUND_TRIP_HEADER = ("WER of the originals", "WER after the codec", "codebook perplexity")
STAGE_HEADER = ("stage", "steps", "minutes", "loss", "backbone", "MTP modules")
TEMPLATE = """# Report

{note}Held-out speech, greedy decoding, speech transcribed by {judge}; trained with ratio {ratio}.
Per mode {counts[0]} clips to transcribe, {counts[1]} texts to speak, {counts[2]} spoken questions.

## Modes

{modes}

\\* decoded with a ratio that differs from the training data; the backbone alone (vanilla) supports any ratio.

WER: errors per word after normalisation; each digit of a number counts as a word.
QA: the answer ends with its keyword (at most {leeway} more word may follow).
An answer without audio has an empty transcript and counts as wrong. tokens/s: one question at a time.

{questions}

![quality over speed](modes.png)

## Codec round trip

{round_trip}

## Stages

{stages}

![losses](losses.png)

## A question and its answer

* question ({answer[question_wav]}): {answer[question_text]}
* answer in text: {answer[text]}
* spoken answer ({answer[wav]}), as transcribed: {answer[transcript]}
* expected: {answer[reference_text]}

![question and answer](answer.png)
"""

Part = dict[str, Any]


@dataclass(frozen=True)
class Mode:
    """The evaluation in a mode.

    Attributes:
        outcomes: Outcomes by task.
        questions: Rows of the corpus by id, with the `reference` answer and the novelty of the question, `unseen`.
        foreign_ratio: Whether the mode's ratio differs from the training data; never for vanilla.
    """

    outcomes: Mapping[str, Outcome]
    questions: Mapping[str, Mapping[str, str]]
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
        modes[name] = Mode(dict(zip(TASKS, outcomes, strict=True)), questions, is_foreign)
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


def as_markdown(report: Part, modes: Mapping[str, Mode], answer: Part, *, trained: InterleavePlan, note: str) -> str:
    """Return the content of report.md, which begins with `note`."""
    first, codec = next(iter(modes.values())).outcomes, report["roundtrip"]
    use = f"{codec['codebook_perplexity']:.0f} of {codec['codebook_size']}"
    return TEMPLATE.format(
        note=f"{note}\n\n" if note else "",
        judge=first["tts"].judge,
        ratio=" ".join(map(str, trained.ratio)),
        counts=[len(first[task].samples) for task in TASKS],
        leeway=KEYWORD_LEEWAY,
        modes=_table(MODE_HEADER, [_mode_row(name, mode) for name, mode in modes.items()]),
        questions=_table(QUESTION_HEADER, [_question_row(name, mode) for name, mode in modes.items()]),
        round_trip=_table(ROUND_TRIP_HEADER, [[_percent(codec["wer_original"]), _percent(codec["wer"]), use]]),
        stages=_table(STAGE_HEADER, [_stage_row(name, stage) for name, stage in report["stages"].items()]),
        answer=answer,
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(Table("", header, rows).markdown())


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


def _mode_row(name: str, mode: Mode) -> list[str]:
    scores, mark = mode.scores, " \\*" if mode.foreign_ratio else ""
    return [
        f"{name} ({' '.join(map(str, MODES[name]))}){mark}",
        *(_percent(scores[field]) for field in RATES),
        f"{scores['backbone_passes_per_token']:.3f}",
        f"{scores['tokens_per_second']:.0f}",
        str(scores["without_audio"]),
    ]


def _question_row(name: str, mode: Mode) -> list[str]:
    scores = mode.scores
    shares = [mode.text_accuracy("rendering"), mode.text_accuracy("phrasing")]
    return [name, *map(_percent, [*shares, scores["qa_text_exact"], scores["qa_speech_wer"]])]


def _stage_row(name: str, stage: Part) -> list[str]:
    losses = stage["final_losses"]
    modules = [loss for depth, loss in losses.items() if depth != "main"]
    span = f"{min(modules):.3f} to {max(modules):.3f}" if modules else "-"
    training = [str(stage["steps"]), f"{stage['minutes']:.1f}", f"{stage['final_loss']:.3f}"]
    return [name, *training, f"{losses['main']:.3f}", span]


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
    markdown = as_markdown(report, modes, answer, trained=trained, note=options.note)
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
