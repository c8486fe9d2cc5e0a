"""The quality page of a prepared corpus: counts, distributions, and examples to listen to."""

import io
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.reporting.page import Clips, diff, percent, render
from tools.corpora.output import problems
from tools.corpora.selection import HELD_OUT, REJECTED, TRAIN, Limits, judged_clips
from vita_audio.files.atomic import write_text
from vita_audio.plots import new_figure

TEMPLATE = Path(__file__).with_name("quality.html")
NUM_USED, NUM_OF_A_KIND = 12, 5  # examples
DRAWN = "ORDER BY substr(hex(print), 1, 12)"  # the same examples every time


class Distribution(NamedTuple):
    """A measure of clips to plot: SQL, width of a bar, and the names of its limits."""

    title: str
    value: str
    width: float
    limits: tuple[str, ...]
    where: str = "1"


DISTRIBUTIONS = (
    Distribution("seconds", "seconds", 1.0, ("min_seconds", "max_seconds")),
    Distribution("level, dB of full scale", "level_db", 2.0, ("min_level",)),
    Distribution("speech to noise, dB (estimate)", "snr_db", 4.0, ("min_snr",)),
    Distribution(
        "words that differ from the recogniser, %",
        "min(100.0 * errors / words, 200.0)",
        5.0,
        ("max_wer",),
        "text IS NOT NULL AND heard IS NOT NULL AND words > 0",
    ),
)


def write_page(
    path: Path, database: sqlite3.Connection, limits: Limits, summary: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Write one self-contained HTML page."""
    clips = Clips(path.parent)
    sizes = [
        [part, str(size["clips"]), f"{size['minutes']:.1f}", str(size["speakers"]), str(size["recordings"])]
        for part, size in summary["parts"].items()
    ]
    examples = {"used": list(judged_clips(database, f"part <> ? {DRAWN} LIMIT {NUM_USED}", REJECTED))}
    for kind in summary["rejections"]:
        chosen = list(judged_clips(database, f"kind = ? {DRAWN} LIMIT {NUM_OF_A_KIND}", kind))
        examples |= {kind: chosen} if chosen else {}
    unreadable = [problem for problem, _ in zip(problems(database), range(100), strict=False)]
    page = render(
        TEMPLATE,
        sizes=sizes,
        rejections=[[kind, str(count)] for kind, count in summary["rejections"].items()],
        chart=draw_distributions(database, limits),
        examples=examples,
        unreadable=unreadable,
        summary=summary | {"wer": percent(summary["wer"])},
        settings=settings,
        player=clips.player,
        diff=diff,
    )
    write_text(path, page)


def draw_distributions(database: sqlite3.Connection, limits: Limits) -> bytes:
    """Return a PNG with a histogram of each measure, used clips over rejected ones, and the limits as lines."""
    figure = new_figure(4 * len(DISTRIBUTIONS), 3.2, layout="constrained")
    axes = figure.subplots(1, len(DISTRIBUTIONS), squeeze=False).ravel()
    for axis, one in zip(axes, DISTRIBUTIONS, strict=True):
        used = _histogram(database, one, f"part IN ('{TRAIN}', '{HELD_OUT}')")
        rejected = _histogram(database, one, f"part = '{REJECTED}'")
        shape = {"width": one.width, "align": "edge"}
        axis.bar(used.keys(), used.values(), color="tab:blue", label="used", **shape)
        axis.bar(rejected.keys(), rejected.values(), color="tab:red", label="rejected", alpha=0.6, **shape)
        for name in one.limits:
            scale = 100 if name == "max_wer" else 1
            axis.axvline(getattr(limits, name) * scale, color="black", linestyle="--", linewidth=1)
        axis.set(xlabel=one.title, ylabel="clips", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    image = io.BytesIO()
    figure.savefig(image, dpi=110, format="png")
    return image.getvalue()


def _histogram(database: sqlite3.Connection, one: Distribution, where: str) -> dict[float, int]:
    """Return the number of clips by the lower edge of each bar."""
    place = f"CAST(floor(({one.value}) / {one.width}) AS INTEGER)"
    query = (
        f"SELECT {place} * {one.width}, COUNT(*) FROM clips JOIN temp.verdicts ON verdicts.clip = clips.id "
        f"WHERE {where} AND {one.where} GROUP BY 1"
    )
    return dict(database.execute(query).fetchall())
