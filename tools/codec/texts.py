"""Sentences with varied sounds for training a speech codec, made from word lists and a small grammar."""

import random
from importlib.resources import files
from pathlib import Path

import yaml

from tools.demo.domain import ENGLISH
from vita_audio.optional import MissingPackageError

ANSWER_RENDERINGS = 4  # the decoder mostly synthesises answers
DIGITS = ENGLISH.digits
DAYS = (*ENGLISH.weekdays, "today", "tomorrow", "yesterday")
_LISTS = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))
WORDS = {kind: text.split() for kind, text in _LISTS.items()}
FREQUENT_WORDS = 6000
FLATTENING = 0.3  # exponent of a word's frequency; gives rarer words a share, with "the" still the most frequent


def profanities() -> set[str]:
    """Return the words that wonderwords lists as profanities."""
    return set((files("wonderwords") / "assets" / "profanitylist.txt").read_text(encoding="utf-8").split())


def word_lists() -> dict[str, list[str]]:
    """Return nouns, adjectives and verbs from the package wonderwords, sorted, single plain words only."""
    assets, bad = files("wonderwords") / "assets", profanities()

    def load(name: str) -> list[str]:
        words = {line.strip() for line in (assets / name).read_text(encoding="utf-8").splitlines()}
        return sorted(w for w in words if w.isalpha() and w.islower() and 2 < len(w) < 10 and w not in bad)

    return {f"{kind}s": load(f"{kind}list.txt") for kind in ("noun", "adjective", "verb")}


def date_text(rng: random.Random) -> str:
    """Return a date in words, in one of four forms."""
    day, month, ordinal = rng.choice(DAYS), rng.choice(ENGLISH.months), rng.choice(ENGLISH.days)
    the_day = f"the {ordinal} of {month}"
    return rng.choice((the_day, f"{month} {ordinal}", f"on {day} {the_day}", f"{day} in {month}"))


class SentenceMaker:
    """Makes random English-like sentences of 5 to 12 words; every draw comes from `rng`."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.words = WORDS | word_lists()

    def pick(self, kind: str) -> str:
        return self.rng.choice(self.words[kind])

    def noun_phrase(self) -> str:
        """Return a noun with a determiner and, sometimes, an adjective."""
        adjective = f"{self.pick('adjectives')} " if self.rng.random() < 0.45 else ""
        noun, determiner = self.pick("nouns"), self.pick("determiners")
        if determiner == "a" and (adjective or noun)[0] in "aeiou":
            determiner = "an"
        return f"{determiner} {adjective}{noun}"

    def clause(self) -> str:
        subject = self.noun_phrase() if self.rng.random() < 0.5 else self.pick("subjects")
        verb = self.pick("past") if self.rng.random() < 0.6 else f"{self.pick('modals')} {self.pick('verbs')}"
        return f"{subject} {verb} {self.noun_phrase()}"

    def sentence(self) -> str:
        """Return a statement, a question or a command."""
        rng, pick = self.rng, self.pick
        shape = rng.random()
        if shape < 0.4:
            text = f"{self.clause()} {pick('prepositions')} {self.noun_phrase()}"
        elif shape < 0.6:
            text = f"{self.clause()} {pick('adverbs')}"
        elif shape < 0.75:
            link = f"{self.noun_phrase()} is {pick('adjectives')} {rng.choice(('and', 'or', 'but'))}"
            text = f"{link} {pick('adjectives')}"
        elif shape < 0.87:
            start = f"{pick('questions')} {rng.choice(('did', 'can', 'will'))} {rng.choice(WORDS['subjects'][:12])}"
            text = f"{start} {pick('verbs')} {self.noun_phrase()}"
        else:
            text = f"{pick('verbs')} {self.noun_phrase()} and {pick('verbs')} {pick('adverbs')}"
        return text.replace("_", " ")


def corpus_texts(count: int, seed: int) -> list[str]:
    """Return `count` different texts in random order: 15 % digit strings, 10 % dates, 75 % sentences."""
    rng = random.Random(seed)
    maker, texts = SentenceMaker(rng), {}
    while len(texts) < count:
        draw = rng.random()
        if draw < 0.15:
            text = " ".join(rng.choices(DIGITS, k=rng.randint(3, 7)))
        elif draw < 0.25:
            text = date_text(rng) if rng.random() < 0.5 else f"{date_text(rng)} {maker.clause()}".replace("_", " ")
        else:
            text = maker.sentence()
        texts[text] = None
    return list(texts)


def frequent_texts(count: int, seed: int) -> list[str]:
    """Return `count` rows of 4 to 9 frequent English words, to cover sounds that the word lists lack.

    Raises: MissingPackageError without the package wordfreq.
    """
    try:
        from wordfreq import top_n_list, word_frequency
    except ImportError as error:
        raise MissingPackageError("rows of frequent words need the package wordfreq; pip install wordfreq") from error
    rng, bad = random.Random(seed), profanities()
    words = [word for word in top_n_list("en", FREQUENT_WORDS, ascii_only=True) if word.isalpha() and len(word) > 1]
    words = [word for word in words if word not in bad]
    weights = [word_frequency(word, "en") ** FLATTENING for word in words]
    return [" ".join(rng.choices(words, weights, k=rng.randint(4, 9))) for _ in range(count)]


def domain_texts(seed: int) -> list[str]:
    """Return the demo's training texts: sentences, questions, and every answer several times; nothing held out."""
    return ENGLISH.training_texts("quick", seed, answer_copies=ANSWER_RENDERINGS)
