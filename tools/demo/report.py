"""Put the parts of a demo evaluation and the results of the training stages together: report.json, report.md, pictures.

    python -m tools.demo.report --evaluation outputs/quickstart/evaluation --output outputs/quickstart \\
        --stages outputs/quickstart/stage1 outputs/quickstart/stage2 ...

Rates in report.json are fractions. Paths are as the evaluation was given them, usually from the repository's root.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.answers import KEYWORD_LEEWAY, TASKS, share
from evaluation.demo import ANSWER, ROUND_TRIP, read_mode, read_part, spoken_answers, write_json
from evaluation.reporting.plots import draw_losses, draw_modes, draw_spectrograms
from vita_audio.errors import one_line_errors
from vita_audio.interleave import MODES
from vita_audio.training.run_folder import RESULTS_FILE, STATE_FILE

MODE_FIELDS = (
    *("asr_wer", "tts_wer", "qa_text_accuracy", "qa_speech_accuracy"),
    *("backbone_passes_per_token", "tokens_per_second"),
)
ROUND_TRIP_FIELDS = ("wer", "wer_original", "codebook_perplexity", "codebook_size")
ANSWER_FIELDS = ("question_wav", "wav", "text", "transcript")
STAGE_FIELDS = ("steps", "minutes", "final_loss", "final_losses")

Part = dict[str, Any]


def build_report(modes: Mapping[str, Part], round_trip: Part, answer: Part, stages: Mapping[str, Part]) -> Part:
    """Return the content of report.json."""
    generated = [
        {
            "task": row["task"],
            "mode": row["mode"],
            "wav": row["wav"],
            "reference_text": row["reference"],
            "transcript": row["transcript"],
        }
        for row in spoken_answers(modes)
    ]
    kept = {"task": ANSWER, "mode": answer["mode"], "wav": answer["wav"]}
    texts = {"reference_text": answer["reference_text"], "transcript": answer["transcript"]}
    return {
        "modes": {
            name: {field: part["scores"][field] for field in MODE_FIELDS} | {"foreign_ratio": part["foreign_ratio"]}
            for name, part in modes.items()
        },
        "roundtrip": {field: round_trip[field] for field in ROUND_TRIP_FIELDS},
        "answer": {field: answer[field] for field in ANSWER_FIELDS},
        "stages": {name: {field: part[field] for field in STAGE_FIELDS} for name, part in stages.items()},
        "generated": [*generated, *round_trip["generated"], kept | texts],
    }


def write_markdown(report: Part, modes: Mapping[str, Part], answer: Part, note: str = "") -> str:
    """Return the content of report.md; `note` stands at its head."""
    first = next(iter(modes.values()))
    num_asr, num_tts, num_qa = (sum(row["task"] == task for row in first["answers"]) for task in TASKS)
    trained = " ".join(map(str, first["trained_ratio"]))
    lines = [
        "# Report",
        "",
        *([note, ""] if note else []),
        f"Held-out speech, greedy decoding, speech judged by {first['judge']}; trained with ratio {trained}.",
        f"Per mode {num_asr} clips to recognise, {num_tts} texts to speak, {num_qa} spoken questions.",
        "",
        "## Modes",
        "",
        *_table(
            ["mode", "ASR WER", "TTS WER", "QA text", "QA speech", "passes/token", "tokens/s", "no audio"],
            [_mode_row(name, part) for name, part in modes.items()],
        ),
        "",
        "\\* decoded with a ratio other than that of the training data; only the backbone alone (vanilla) follows any.",
        "",
        f"QA: the answer ends with its keyword (at most {KEYWORD_LEEWAY} more word may follow).",
        "An answer without audio has an empty transcript and counts as wrong. tokens/s: one question at a time.",
        "",
        *_table(
            ["mode", "QA text, heard phrasing", "QA text, new phrasing", "whole answer exact", "QA speech WER"],
            [_question_row(name, part) for name, part in modes.items()],
        ),
        "",
        "![quality over speed](modes.png)",
        "",
        "## Codec round trip",
        "",
        *_table(
            ["WER of the originals", "WER after the codec", "codebook perplexity"],
            [_round_trip_row(report["roundtrip"])],
        ),
        "",
        "## Stages",
        "",
        *_table(
            ["stage", "steps", "minutes", "loss", "backbone", "MTP modules"],
            [_stage_row(name, stage) for name, stage in report["stages"].items()],
        ),
        "",
        "![losses](losses.png)",
        "",
        "## A question and its answer",
        "",
        f"* asked ({answer['question_wav']}): {answer['question_text']}",
        f"* answered in text: {answer['text']}",
        f"* answered aloud ({answer['wav']}), as the judge heard it: {answer['transcript']}",
        f"* expected: {answer['reference_text']}",
        "",
        "![question and answer](answer.png)",
    ]
    return "\n".join(lines) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _mode_row(name: str, part: Part) -> list[str]:
    scores, mark = part["scores"], " \\*" if part["foreign_ratio"] else ""
    return [
        f"{name} ({' '.join(map(str, MODES[name]))}){mark}",
        *(_percent(scores[field]) for field in MODE_FIELDS[:4]),
        f"{scores['backbone_passes_per_token']:.3f}",
        f"{scores['tokens_per_second']:.0f}",
        str(scores["without_audio"]),
    ]


def _question_row(name: str, part: Part) -> list[str]:
    scores, shares = part["scores"], []
    for unseen in ("rendering", "phrasing"):
        rows = [row for row in part["answers"] if row["unseen"] == unseen]
        shares.append(_percent(share(row["text_right"] for row in rows)) if rows else "-")
    return [name, *shares, _percent(scores["qa_text_exact"]), _percent(scores["qa_speech_wer"])]


def _round_trip_row(figures: Part) -> list[str]:
    use = f"{figures['codebook_perplexity']:.0f} of {figures['codebook_size']}"
    return [_percent(figures["wer_original"]), _percent(figures["wer"]), use]


def _stage_row(name: str, stage: Part) -> list[str]:
    losses = stage["final_losses"]
    modules = [loss for depth, loss in losses.items() if depth != "main"]
    span = f"{min(modules):.3f} to {max(modules):.3f}" if modules else "-"
    return [
        name,
        str(stage["steps"]),
        f"{stage['minutes']:.1f}",
        f"{stage['final_loss']:.3f}",
        f"{losses['main']:.3f}",
        span,
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluation", required=True, type=Path, help="folder of evaluation.demo")
    parser.add_argument("--stages", required=True, nargs="+", type=Path, help="folders of the training stages")
    parser.add_argument("--output", required=True, type=Path, help="folder for report.json, report.md and the pictures")
    parser.add_argument("--note", default="", help="what a reader must know first")
    options = parser.parse_args(arguments)
    modes = {name: read_mode(options.evaluation, name) for name in MODES}
    round_trip, answer = (read_part(options.evaluation, name) for name in (ROUND_TRIP, ANSWER))
    stages = {folder.name: json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8")) for folder in options.stages}
    states = {folder.name: json.loads((folder / STATE_FILE).read_text(encoding="utf-8")) for folder in options.stages}
    report = build_report(modes, round_trip, answer, stages)
    options.output.mkdir(parents=True, exist_ok=True)
    draw_losses({name: state["log_history"] for name, state in states.items()}, options.output / "losses.png")
    draw_modes(report["modes"], options.output / "modes.png")
    sounds = {
        "question": (Path(answer["question_wav"]), answer["question_text"]),
        "answer": (Path(answer["wav"]), answer["text"]),
    }
    draw_spectrograms(sounds, options.output / "answer.png")
    markdown = write_markdown(report, modes, answer, options.note)
    (options.output / "report.md").write_text(markdown, encoding="utf-8")
    write_json(options.output / "report.json", report)
    print(markdown)


if __name__ == "__main__":
    with one_line_errors("tools.demo.report"):
        main()
