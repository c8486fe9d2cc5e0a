"""The texts of the demo corpus: digit strings, dates, simple sentences, and questions with answers.

All texts are in lower case without punctuation, as speech recognition should return them. A checksum decides whether a
text is held out, so held-out texts do not depend on size or seed and training texts never include them. One phrasing of
each question is held out, but not the answer. The words of a language are in domains/.
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

HELD_OUT_SHARE = 10  # one text in ten is never used for training
HELD_OUT_SEED = 1
SHORTEST_DIGITS, LONGEST_DIGITS = 3, 5
NEAR_SHARE = 0.4  # of the questions outside the domain
FOLDER = Path(__file__).with_name("domains")


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


_COMMON = _read(Path(__file__).with_suffix(".yaml"))
SIZES: dict[str, dict[str, Any]] = _COMMON["sizes"]
MIXTURES: dict[str, dict[str, int]] = _COMMON["mixtures"]


@dataclass(frozen=True)
class Topic:
    """Questions that share their wording; `facts` maps `asked` to `keyword`, which fill `phrasings` and `answer`."""

    phrasings: list[str]
    answer: str
    facts: dict[str, str]


@dataclass(frozen=True)
class Outside:
    """Questions outside the domain and the one answer to them, as described in domains/en_outside.yaml."""

    answer: str
    keyword: str
    templates: list[str]
    slots: dict[str, list[str]]
    near: dict[str, list[str]]
    held_out: list[str]
    near_held_out: list[str]


@dataclass(frozen=True)
class Question:
    """A question about one fact in its phrasings for training, and its answer, judged by its last word, `keyword`."""

    topic: str
    phrasings: tuple[str, ...]
    held_out_phrasing: str
    answer: str
    keyword: str


@dataclass(frozen=True)
class Domain:
    """The texts of one language.

    Attributes:
        date_form: Format of a date with {day} and {month}; a weekday may precede it.
        days: The days of a month, from the first to the 31st, in words.
        templates: Sentences with slots in braces.
        slots: Words for each slot of the templates.
        question_words: First words of texts that are spoken as questions.
        voice: Voice of `speak_command` for the corpus, ENGINE:NAME; None: a Piper voice.
        outside: Questions outside the domain; None if the language has none.
    """

    language: str
    digits: list[str]
    days: list[str]
    days_per_month: dict[str, int]
    weekdays: list[str]
    date_form: str
    templates: list[str]
    slots: dict[str, list[str]]
    topics: dict[str, Topic]
    question_words: list[str]
    voice: str | None = None
    outside: Outside | None = None

    @classmethod
    def read(cls, language: str) -> "Domain":
        """Read domains/LANGUAGE.yaml and, if there is one, domains/LANGUAGE_outside.yaml."""
        words, outside = _read(FOLDER / f"{language}.yaml"), FOLDER / f"{language}_outside.yaml"
        words["topics"] = {name: Topic(**topic) for name, topic in words["topics"].items()}
        return cls(language, **words, outside=Outside(**_read(outside)) if outside.exists() else None)

    @cached_property
    def months(self) -> tuple[str, ...]:
        return tuple(self.days_per_month)

    def spoken(self, text: str) -> str:
        """Return a text with the question mark or full stop that a synthesiser needs."""
        return text + ("?" if text.split()[0] in self.question_words else ".")

    def is_held_out(self, text: str) -> bool:
        """Return whether a digit string, date or sentence is held out from training.

        A date is judged without its weekday, and a digit string is held out if any part of it is, so that no text of
        the evaluation occurs in training, even within a longer text.
        """
        words = text.split()
        if words[0] in self.weekdays:
            words = words[1:]
        spans = [words]
        if set(words) <= set(self.digits):
            starts = range(len(words) - SHORTEST_DIGITS + 1)
            spans = [words[start:end] for start in starts for end in range(start + SHORTEST_DIGITS, len(words) + 1)]
        return any(zlib.crc32(" ".join(span).encode()) % HELD_OUT_SHARE == 0 for span in spans)

    def digit_string(self, rng: random.Random) -> str:
        """Return three to five digits as words."""
        return " ".join(rng.choices(self.digits, k=rng.randint(SHORTEST_DIGITS, LONGEST_DIGITS)))

    def date(self, rng: random.Random) -> str:
        """Return a day of the year, one in three with a weekday: "the third of may", "monday the third of may"."""
        month = rng.choice(self.months)
        weekday = rng.choice(self.weekdays) + " " if rng.random() < 1 / 3 else ""
        return weekday + self.date_form.format(day=self.days[rng.randrange(self.days_per_month[month])], month=month)

    def sentence(self, rng: random.Random) -> str:
        """Return a sentence of a few words from the grammar."""
        return _fill(self.templates, self.slots, rng)

    def draw(
        self, make: Callable[[random.Random], str], count: int, rng: random.Random, *, held_out: bool
    ) -> list[str]:
        """Draw `count` different texts from `make`, all held out or all not.

        Raises: ValueError if `make` does not yield enough different texts.
        """
        texts: dict[str, None] = {}
        for _ in range(1000 + 100 * count):
            if len(texts) == count:
                break
            text = make(rng)
            if self.is_held_out(text) == held_out:
                texts[text] = None
        if len(texts) < count:
            raise ValueError(f"{make.__name__} must yield {count} different texts, got {len(texts)}; ask for fewer")
        return list(texts)

    def _draw_kinds(self, counts: dict[str, int], rng: random.Random) -> list[str]:
        """Draw training texts of each kind in `counts`, whose keys are digits, dates and sentences."""
        kinds = {"digits": self.digit_string, "dates": self.date, "sentences": self.sentence}
        return [text for name, count in counts.items() for text in self.draw(kinds[name], count, rng, held_out=False)]

    def training_sentences(self, size: str, seed: int = 0) -> list[str]:
        """Return digit strings, dates and sentences for training, shuffled."""
        rng = random.Random(f"train {seed}")
        texts = self._draw_kinds({name: SIZES[size][name] for name in ("digits", "dates", "sentences")}, rng)
        rng.shuffle(texts)
        return texts

    def more_sentences(self, size: str, seed: int = 0) -> list[str]:
        """Return further digit strings, dates and sentences for training, for a size that has `more`."""
        known, rng = set(self.training_sentences(size, seed)), random.Random(f"more {seed}")
        texts = [text for text in self._draw_kinds(SIZES[size].get("more", {}), rng) if text not in known]
        rng.shuffle(texts)
        return texts

    def heldout_sentences(self, size: str) -> list[str]:
        """Return digit strings, dates and sentences for evaluation, alternating between the three kinds."""
        count, rng = SIZES[size]["held_out"], random.Random(HELD_OUT_SEED)
        makers = (self.digit_string, self.date, self.sentence)
        kinds = [self.draw(make, count, rng, held_out=True) for make in makers]
        return [text for group in zip(*kinds, strict=True) for text in group]

    def questions(self, size: str) -> list[Question]:
        """Return the questions of a corpus, alternating between topics; the held-out phrasing rotates in a topic."""
        per_topic = [
            [_question(name, topic, i) for i in range(len(topic.facts))] for name, topic in self.topics.items()
        ]
        mixed = [question for row in zip_longest(*per_topic) for question in row if question]
        return mixed[: SIZES[size]["questions"]]

    def outside_questions(self, size: str, seed: int = 0) -> list[str]:
        """Return different questions outside the domain for training.

        Raises: ValueError if the size has some and the language has none.
        """
        count = SIZES[size].get("outside", 0)
        if count and self.outside is None:
            raise ValueError(f"size {size} needs questions outside the domain, which {self.language} lacks")
        rng, texts = random.Random(f"outside {seed}"), dict[str, None]()
        while len(texts) < count:
            if rng.random() < NEAR_SHARE:
                topic = rng.choice(list(self.outside.near))
                text = rng.choice(self.topics[topic].phrasings).format(asked=rng.choice(self.outside.near[topic]))
            else:
                text = _fill(self.outside.templates, self.outside.slots, rng)
            texts[text] = None
        return list(texts)

    @cached_property
    def near_questions(self) -> frozenset[str]:
        """Questions that are worded like those of the domain, but lie outside it."""
        near = self.outside.near.items() if self.outside else ()
        return frozenset(
            phrasing.format(asked=asked)
            for topic, listed in near
            for phrasing in self.topics[topic].phrasings
            for asked in listed
        )

    def training_texts(self, size: str, seed: int = 0, *, answer_copies: int = 1) -> list[str]:
        """Return every text that is spoken in training: sentences, training phrasings, answers."""
        asked = [phrasing for question in self.questions(size) for phrasing in question.phrasings]
        answers = [question.answer for question in self.questions(size)]
        return [*self.training_sentences(size, seed), *asked, *answers * answer_copies]


def _fill(templates: list[str], slots: dict[str, list[str]], rng: random.Random) -> str:
    return rng.choice(templates).format(**{slot: rng.choice(words) for slot, words in slots.items()})


def _question(name: str, topic: Topic, index: int) -> Question:
    asked, keyword = list(topic.facts.items())[index]
    phrasings = [phrasing.format(asked=asked) for phrasing in topic.phrasings]
    held_out = phrasings.pop(index % len(phrasings))
    answer = topic.answer.format(asked=asked, keyword=keyword)
    return Question(name, tuple(phrasings), held_out, answer, keyword)


LANGUAGES = ("en", *sorted(path.stem for path in FOLDER.glob("??.yaml") if path.stem != "en"))
DOMAINS = {language: Domain.read(language) for language in LANGUAGES}
ENGLISH = DOMAINS["en"]
