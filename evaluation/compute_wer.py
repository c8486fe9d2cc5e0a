"""Print the report of the public programs compute-wer and compute-cer for two files of `ID TEXT` lines.

    python -m evaluation.compute_wer --char=1 --v=1 REF HYP
    python -m evaluation.compute_wer --unit=character --char=1 --v=1 REF HYP

Every id must occur exactly once in both files; the public programs skip ids that only one file has. The references must
contain words; without any, the public programs report no errors.
"""

from __future__ import annotations

import argparse
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from evaluation.metrics.public import UNITS, tokenize
from evaluation.metrics.score import pair_texts, read_texts
from vita_audio.command_line import OneLineParser
from vita_audio.errors import one_line_errors

RULE = "=" * 75
OTHER = "Other"
SCRIPTS = {  # start of a character's Unicode name -> script
    "DIGIT": "Number",
    "CJK UNIFIED IDEOGRAPH": "Mandarin",
    "CJK COMPATIBILITY IDEOGRAPH": "Mandarin",
    "LATIN CAPITAL LETTER": "English",
    "LATIN SMALL LETTER": "English",
    "HIRAGANA LETTER": "Japanese",
}
JOINING = frozenset("&'@℃=.-_#+;")  # within a word of any script

Pair = tuple[str | None, str | None]  # a token of the reference and of the hypothesis; None: the other stands alone


@dataclass(frozen=True)
class EditCounts:
    """How a hypothesis differs from its reference, in tokens."""

    correct: int
    substituted: int
    deleted: int
    inserted: int

    @property
    def length(self) -> int:
        """Tokens of the reference."""
        return self.correct + self.substituted + self.deleted

    @property
    def percent(self) -> float:
        """Errors per hundred tokens of the reference; 0 without any, though its insertions count in a sum."""
        return 100 * (self.substituted + self.deleted + self.inserted) / self.length if self.length else 0.0


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Pair]:
    """Return the shortest edit as pairs of tokens.

    From the end backwards, a deletion goes before an insertion, and both before a match or substitution of the same
    distance; this decides only the kinds of the errors, not their number.
    """
    distances = _distances(reference, hypothesis)
    pairs: list[Pair] = []
    row, column = len(reference), len(hypothesis)
    while row or column:
        here = distances[row][column]
        if row and distances[row - 1][column] + 1 == here:
            row -= 1
            pairs.append((reference[row], None))
        elif column and distances[row][column - 1] + 1 == here:
            column -= 1
            pairs.append((None, hypothesis[column]))
        else:
            row, column = row - 1, column - 1
            pairs.append((reference[row], hypothesis[column]))
    return pairs[::-1]


def _distances(reference: Sequence[str], hypothesis: Sequence[str]) -> list[list[int]]:
    """Return edits between all beginnings, (reference + 1, hypothesis + 1)."""
    rows = [list(range(len(hypothesis) + 1))]
    for index, token in enumerate(reference, start=1):
        above, row = rows[-1], [index]
        for column, other in enumerate(hypothesis):
            row.append(min(above[column + 1] + 1, row[column] + 1, above[column] + (token != other)))
        rows.append(row)
    return rows


def count_edits(pairs: Iterable[Pair]) -> EditCounts:
    kinds = [
        "deleted" if hypothesis is None else "inserted" if reference is None else reference == hypothesis
        for reference, hypothesis in pairs
    ]
    return EditCounts(kinds.count(True), kinds.count(False), kinds.count("deleted"), kinds.count("inserted"))


def script_of(token: str) -> str:
    """Return the script of a token's characters, "Other" if they belong to several scripts or to an unknown one."""
    names = (unicodedata.name(character, "") for character in token if character not in JOINING)
    scripts = {next((SCRIPTS[start] for start in SCRIPTS if name.startswith(start)), OTHER) for name in names}
    return scripts.pop() if len(scripts) == 1 else OTHER


def count_by_script(alignments: Iterable[Sequence[Pair]]) -> dict[str, EditCounts]:
    """Return the counts by script, in order of occurrence; a substitution counts for the script of the reference."""
    pairs: dict[str, list[Pair]] = {}
    for reference, hypothesis in chain.from_iterable(alignments):
        for token in filter(None, (reference, hypothesis)):
            pairs.setdefault(script_of(token), [])
        pairs[script_of(reference or hypothesis)].append((reference, hypothesis))
    return {script: count_edits(script_pairs) for script, script_pairs in pairs.items()}


def shown(counts: EditCounts) -> str:
    kinds = f"C={counts.correct} S={counts.substituted} D={counts.deleted} I={counts.inserted}"
    return f"{counts.percent:4.2f} % N={counts.length} {kinds}"


def columns(alignment: Sequence[Pair]) -> tuple[str, str]:
    """Return the tokens of both sides aligned in two lines; full-width characters take two columns."""
    lines = ["", ""]
    for pair in alignment:
        places = max(map(_width, pair)) + 1
        for side, token in enumerate(pair):
            lines[side] += (token or "") + " " * (places - _width(token))
    return lines[0], lines[1]


def _width(token: str | None) -> int:
    return sum(1 + (unicodedata.east_asian_width(character) in "AFW") for character in token or "")


def report(names: Sequence[str], alignments: Sequence[Sequence[Pair]], *, verbose: bool = True) -> Iterator[str]:
    """Yield the lines of the report; if not `verbose`, only the total counts."""
    overall = f"Overall -> {shown(count_edits(pair for alignment in alignments for pair in alignment))}"
    if not verbose:
        yield from (overall, "")
        return
    for name, alignment in zip(names, alignments, strict=True):
        yield from ("", f"utt: {name}", f"WER: {shown(count_edits(alignment))}")
        if alignment:
            yield from (f"{label}: {line}" for label, line in zip(("lab", "rec"), columns(alignment), strict=True))
            yield ""
    yield from (RULE, "", overall)
    yield from (f"{script} -> {shown(counts)}" for script, counts in count_by_script(alignments).items())
    yield from ("", RULE)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("evaluation.compute_wer", __doc__)
    parser.add_argument("references", type=Path, metavar="REF")
    parser.add_argument("hypotheses", type=Path, metavar="HYP")
    parser.add_argument("--unit", choices=UNITS, default="word", help="character: like compute-cer")
    parser.add_argument("--char", type=int, choices=(0, 1), default=0, help="1: each Chinese character is a word")
    parser.add_argument("--cs", type=int, choices=(0, 1), default=0, help="1: case-sensitive")
    parser.add_argument("--v", type=int, choices=(0, 1), default=1, help="0: print the total only")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    names, *texts = pair_texts(read_texts(options.references), read_texts(options.hypotheses))
    rules = {"unit": options.unit, "split_scripts": bool(options.char), "case_sensitive": bool(options.cs)}
    pairs = zip(*texts, strict=True)
    alignments = [align(*(list(tokenize(text, **rules)) for text in pair)) for pair in pairs]
    if not any(reference is not None for alignment in alignments for reference, _ in alignment):
        raise ValueError(f"{options.references} must have words, got {len(names)} texts without any")
    for line in report(names, alignments, verbose=bool(options.v)):
        print(line)


if __name__ == "__main__":
    with one_line_errors("evaluation.compute_wer"):
        main()
