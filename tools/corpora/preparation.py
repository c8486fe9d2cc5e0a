"""Turn recordings into training data: the part of tools/prepare_speech.py that follows its arguments."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from evaluation.judges import get_judge
from evaluation.metrics.ours import scored_tokens
from evaluation.run_folder import keep_settings
from tools.corpora.clip_store import ClipStore
from tools.corpora.formats import find_format, read_corpus
from tools.corpora.measuring import Cutter, measure_corpus
from tools.corpora.output import summarise, write_corpus
from tools.corpora.quality_page import write_page
from tools.corpora.selection import Limits, select_clips
from tools.corpora.voice_activity import Splitting
from vita_audio.errors import one_line_errors, one_line_run_errors
from vita_audio.files.atomic import write_json
from vita_audio.serve.turns import VadStream, load_vad

AUTO, NO_ASR = "auto", "none"


@dataclass(frozen=True)
class Settings:
    """Options of tools/prepare_speech.py, whose help describes them."""

    source: Path
    output: Path
    format: str
    asr: str
    language: str
    threads: int | None
    no_split: bool
    pause: float
    longest_clip: float
    limits: Limits

    @classmethod
    def from_json(cls, text: str) -> Settings:
        values = json.loads(text)
        paths = {name: Path(values[name]) for name in ("source", "output")}
        return cls(**values | paths | {"limits": Limits(**values["limits"])})

    def of_measuring(self, layout: str) -> dict[str, str]:
        """Return what measurements depend on; `layout` is the one found."""
        names = ("source", "asr", "language", "no_split", "pause", "longest_clip")
        return {"format": layout} | {name: str(getattr(self, name)) for name in names}


def prepare(settings: Settings) -> None:
    """Measure the recordings, choose clips, write all files and print the counts."""
    source, output, limits = settings.source, settings.output, settings.limits
    layout = find_format(source) if settings.format == AUTO else settings.format
    judge = None if settings.asr == NO_ASR else get_judge(settings.asr, settings.threads, language=settings.language)
    scored_tokens("", settings.language)  # raises for a language without rules
    output.mkdir(parents=True, exist_ok=True)
    kept = settings.of_measuring(layout)
    keep_settings(output, kept)
    vad = None if settings.no_split else VadStream(load_vad())
    cutter = Cutter(vad, Splitting(settings.pause, settings.longest_clip))
    count = sum(1 for _ in read_corpus(source, layout))
    if not count:
        raise ValueError(f"{source}: no recordings found in the layout {layout}; --format chooses another")
    found = tqdm(read_corpus(source, layout), desc="measuring", total=count, unit="recording", smoothing=0.02)
    with closing(ClipStore(output / "clips.sqlite")) as store:
        measure_corpus(found, store, cutter, judge, settings.language)
        summary = summarise(store.database, select_clips(store, limits))
        write_corpus(output, store.database)
        write_json(output / "summary.json", summary)
        write_page(output / "quality.html", store.database, limits, summary, kept | asdict(limits))
    print(f"{output}: {describe(summary)}")
    if "train" not in summary["parts"]:
        raise ValueError(f"no clip can be used, see {output / 'rejections.jsonl'}")


def describe(summary: dict) -> str:
    """Return the counts of a corpus in one line."""
    sizes = [f"{part} {size['clips']} clips ({size['minutes']:.1f} min)" for part, size in summary["parts"].items()]
    reasons = ", ".join(f"{kind} {count}" for kind, count in summary["rejections"].items())
    return "; ".join([*sizes, f"rejections: {reasons or 'none'}"])


def main(settings: str) -> None:
    """Prepare a corpus with settings given as JSON, see `Settings`."""
    with one_line_errors("prepare_speech"), one_line_run_errors("prepare_speech"):
        prepare(Settings.from_json(settings))
