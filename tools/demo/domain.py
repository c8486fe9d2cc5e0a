"""The texts of the demo corpus: digit strings, dates, simple sentences, and questions with answers.

All texts are in lower case without punctuation, as speech recognition should return them. A checksum decides whether a
text is held out, so held-out texts do not depend on size or seed and training texts never include them. One phrasing of
each question is held out, but not the answer. The words are in domain.yaml, those of other questions in outside.yaml.
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

HELD_OUT_SHARE = 10  # one text in ten is never used for training
HELD_OUT_SEED = 1
SHORTEST_DIGITS, LONGEST_DIGITS = 3, 5
QUESTION_WORDS = (
    *("what", "which", "who", "whom", "whose", "how", "why", "where", "when", "do", "does", "did", "can", "could"),
    *("is", "are", "was", "were", "am", "will", "should", "have", "has", "may"),
)
NEAR_SHARE = 0.2  # of the questions outside the domain


@dataclass(frozen=True)
class Topic:
    """Questions that share their wording; `facts` maps `asked` to `keyword`, which fill `phrasings` and `answer`."""

    phrasings: list[str]
    answer: str
    facts: dict[str, str]


_WORDINGS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
DIGITS, DAY_ORDINALS, WEEKDAYS = (tuple(_WORDINGS[name]) for name in ("digits", "day_ordinals", "weekdays"))
DAYS_PER_MONTH: dict[str, int] = _WORDINGS["days_per_month"]
MONTHS = tuple(DAYS_PER_MONTH)
SENTENCE_TEMPLATES: list[str] = _WORDINGS["templates"]
SLOTS: dict[str, list[str]] = _WORDINGS["slots"]  # words for each slot of the templates
SIZES: dict[str, dict[str, Any]] = _WORDINGS["sizes"]
MIXTURES: dict[str, dict[str, int]] = _WORDINGS["mixtures"]
TOPICS = {name: Topic(**topic) for name, topic in _WORDINGS["topics"].items()}


@dataclass(frozen=True)
class Outside:
    """Questions outside the domain and the one answer to them, as described in outside.yaml."""

    answer: str
    keyword: str
    templates: list[str]
    slots: dict[str, list[str]]
    near: dict[str, list[str]]
    held_out: list[str]
    near_held_out: list[str]


OUTSIDE = Outside(**yaml.safe_load(Path(__file__).with_name("outside.yaml").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Question:
    """A question about one fact in its phrasings for training, and its answer, judged by its last word, `keyword`."""

    topic: str
    phrasings: tuple[str, ...]
    held_out_phrasing: str
    answer: str
    keyword: str


def spoken(text: str) -> str:
    """Return a text with the question mark or full stop that a synthesiser needs."""
    return text + ("?" if text.split()[0] in QUESTION_WORDS else ".")


def is_held_out(text: str) -> bool:
    """Return whether a digit string, date or sentence is held out from training.

    A date is judged without its weekday, and a digit string is held out if any part of it is, so that no text of the
    evaluation occurs in training, even within a longer text.
    """
    words = text.split()
    if words[0] in WEEKDAYS:
        words = words[1:]
    spans = [words]
    if set(words) <= set(DIGITS):
        starts = range(len(words) - SHORTEST_DIGITS + 1)
        spans = [words[start:end] for start in starts for end in range(start + SHORTEST_DIGITS, len(words) + 1)]
    return any(zlib.crc32(" ".join(span).encode()) % HELD_OUT_SHARE == 0 for span in spans)


def digit_string(rng: random.Random) -> str:
    """Return three to five digits as words."""
    return " ".join(rng.choices(DIGITS, k=rng.randint(SHORTEST_DIGITS, LONGEST_DIGITS)))


def date(rng: random.Random) -> str:
    """Return a day of the year, one in three with a weekday: "the third of may", "monday the third of may"."""
    month = rng.choice(MONTHS)
    weekday = rng.choice(WEEKDAYS) + " " if rng.random() < 1 / 3 else ""
    return f"{weekday}the {DAY_ORDINALS[rng.randrange(DAYS_PER_MONTH[month])]} of {month}"


def sentence(rng: random.Random) -> str:
    """Return a sentence of five to eight words from the grammar."""
    return _fill(SENTENCE_TEMPLATES, SLOTS, rng)


def _fill(templates: list[str], slots: dict[str, list[str]], rng: random.Random) -> str:
    return rng.choice(templates).format(**{slot: rng.choice(words) for slot, words in slots.items()})


def draw(make: Callable[[random.Random], str], count: int, rng: random.Random, *, held_out: bool) -> list[str]:
    """Draw `count` different texts from `make`, all held out or all not.

    Raises: ValueError if `make` does not yield enough different texts.
    """
    texts: dict[str, None] = {}
    for _ in range(1000 + 100 * count):
        if len(texts) == count:
            break
        text = make(rng)
        if is_held_out(text) == held_out:
            texts[text] = None
    if len(texts) < count:
        raise ValueError(f"{make.__name__} must yield {count} different texts, got {len(texts)}; ask for fewer")
    return list(texts)


def training_sentences(size: str, seed: int = 0) -> list[str]:
    """Return digit strings, dates and sentences for training, shuffled."""
    counts, rng = SIZES[size], random.Random(f"train {seed}")
    kinds = ((digit_string, counts["digits"]), (date, counts["dates"]), (sentence, counts["sentences"]))
    texts = [text for make, count in kinds for text in draw(make, count, rng, held_out=False)]
    rng.shuffle(texts)
    return texts


def more_sentences(size: str, seed: int = 0) -> list[str]:
    """Return further digit strings, dates and sentences for training, for a size that has `more`."""
    known, rng = set(training_sentences(size, seed)), random.Random(f"more {seed}")
    kinds = {"digits": digit_string, "dates": date, "sentences": sentence}
    counts = SIZES[size].get("more", {})
    drawn = [draw(kinds[name], count, rng, held_out=False) for name, count in counts.items()]
    texts = [text for texts in drawn for text in texts if text not in known]
    rng.shuffle(texts)
    return texts


def heldout_sentences(size: str) -> list[str]:
    """Return digit strings, dates and sentences for evaluation, alternating between the three kinds."""
    count, rng = SIZES[size]["held_out"], random.Random(HELD_OUT_SEED)
    kinds = [draw(make, count, rng, held_out=True) for make in (digit_string, date, sentence)]
    return [text for group in zip(*kinds, strict=True) for text in group]


def questions(size: str) -> list[Question]:
    """Return the questions of a corpus, alternating between topics; the held-out phrasing rotates within a topic."""
    per_topic = [[_question(name, index) for index in range(len(topic.facts))] for name, topic in TOPICS.items()]
    mixed = [question for row in zip_longest(*per_topic) for question in row if question]
    return mixed[: SIZES[size]["questions"]]


def outside_questions(size: str, seed: int = 0) -> list[str]:
    """Return different questions outside the domain for training."""
    rng, texts = random.Random(f"outside {seed}"), dict[str, None]()
    while len(texts) < SIZES[size].get("outside", 0):
        if rng.random() < NEAR_SHARE:
            topic = rng.choice(list(OUTSIDE.near))
            text = rng.choice(TOPICS[topic].phrasings).format(asked=rng.choice(OUTSIDE.near[topic]))
        else:
            text = _fill(OUTSIDE.templates, OUTSIDE.slots, rng)
        texts[text] = None
    return list(texts)


def training_texts(size: str, seed: int = 0, *, answer_copies: int = 1) -> list[str]:
    """Return every text that is spoken in training: sentences, training phrasings, answers."""
    asked = [phrasing for question in questions(size) for phrasing in question.phrasings]
    answers = [question.answer for question in questions(size)]
    return [*training_sentences(size, seed), *asked, *answers * answer_copies]


def _question(topic_name: str, index: int) -> Question:
    topic = TOPICS[topic_name]
    asked, keyword = list(topic.facts.items())[index]
    phrasings = [phrasing.format(asked=asked) for phrasing in topic.phrasings]
    held_out = phrasings.pop(index % len(phrasings))
    answer = topic.answer.format(asked=asked, keyword=keyword)
    return Question(topic_name, tuple(phrasings), held_out, answer, keyword)
