"""Sentences with varied sounds for training a speech codec, made from word lists and a small grammar."""

import random
from importlib.resources import files

from tools.demo.domain import DAY_ORDINALS, DIGITS, MONTHS, WEEKDAYS, questions, training_sentences
from vita_audio.optional import MissingPackageError

ANSWER_RENDERINGS = 4  # answers are what the decoder speaks most
DAYS = (*WEEKDAYS, "today", "tomorrow", "yesterday")
PAST = (
    "took gave found lost kept held made broke bent cut threw caught drew built bought sold sent brought left "
    "met heard saw felt knew thought told said wrote read sang rang swam ran rode drove flew grew blew froze "
    "chose shook woke wore tore burned turned learned earned pushed pulled washed brushed crossed dropped "
    "shipped tripped wrapped stopped helped hoped asked liked looked walked worked picked packed cracked fixed "
    "mixed missed kissed dressed pressed passed used raised closed cleaned opened joined planned phoned filled "
    "called pulled rolled moved loved saved waved robbed rubbed hugged begged judged changed bridged reached "
    "watched touched matched pitched added needed wanted waited lifted planted painted counted started parted "
    "tasted rested lasted visited invited admired measured covered offered entered gathered ordered"
).split()
PREPOSITIONS = (
    "in on under over near behind beside by with without from to through across along around past against "
    "between after before during above below inside outside toward beyond next_to in_front_of on_top_of "
    "at_the_end_of because_of"
).split()
ADVERBS = (
    "quickly slowly softly loudly often never always soon later early again twice once there here outside "
    "together alone almost quite rather very too well badly hardly gladly sadly early at_once at_last "
    "right_away in_the_morning at_night each_year last_week on_time by_hand for_a_while every_day"
).split()
SUBJECTS = (
    "i you he she we they it the_boy the_girl the_man my_sister your_father our_friend their_teacher nobody someone"
).split()
DETERMINERS = "the the the a a this that each every his her my your our their one some no another".split()
QUESTIONS = "where when why how what".split()
FREQUENT_WORDS = 6000
FLATTENING = 0.3  # exponent of a word's frequency; gives rarer words a share, with "the" still the most frequent
MODALS = "can could will would should must might may did does cannot won't didn't shouldn't".split()


def profanities() -> set[str]:
    """Return the words that wonderwords lists as profanities."""
    return set((files("wonderwords") / "assets" / "profanitylist.txt").read_text(encoding="utf-8").split())


def word_lists() -> tuple[list[str], list[str], list[str]]:
    """Return (nouns, adjectives, verbs) from the package wonderwords, sorted, single plain words only."""
    assets, bad = files("wonderwords") / "assets", profanities()

    def load(name: str) -> list[str]:
        words = {line.strip() for line in (assets / name).read_text(encoding="utf-8").splitlines()}
        return sorted(w for w in words if w.isalpha() and w.islower() and 2 < len(w) < 10 and w not in bad)

    return load("nounlist.txt"), load("adjectivelist.txt"), load("verblist.txt")


def number_text(rng: random.Random) -> str:
    return " ".join(rng.choices(DIGITS, k=rng.randint(3, 7)))


def date_text(rng: random.Random) -> str:
    """Return a date in words, in one of four forms."""
    day, month, ordinal = rng.choice(DAYS), rng.choice(MONTHS), rng.choice(DAY_ORDINALS)
    patterns = (
        f"the {ordinal} of {month}",
        f"{month} {ordinal}",
        f"on {day} the {ordinal} of {month}",
        f"{day} in {month}",
    )
    return rng.choice(patterns)


class SentenceMaker:
    """Makes random English-like sentences of 5 to 12 words; every draw comes from `rng`."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.nouns, self.adjectives, self.verbs = word_lists()

    def noun_phrase(self) -> str:
        """Return a noun with a determiner and, sometimes, an adjective."""
        rng = self.rng
        adjective = f"{rng.choice(self.adjectives)} " if rng.random() < 0.45 else ""
        noun = rng.choice(self.nouns)
        determiner = rng.choice(DETERMINERS)
        if determiner == "a" and (adjective or noun)[0] in "aeiou":
            determiner = "an"
        return f"{determiner} {adjective}{noun}"

    def clause(self) -> str:
        rng = self.rng
        subject = self.noun_phrase() if rng.random() < 0.5 else rng.choice(SUBJECTS)
        verb = rng.choice(PAST) if rng.random() < 0.6 else f"{rng.choice(MODALS)} {rng.choice(self.verbs)}"
        return f"{subject} {verb} {self.noun_phrase()}"

    def sentence(self) -> str:
        """Return a statement, a question or a command."""
        rng = self.rng
        shape = rng.random()
        if shape < 0.4:
            text = f"{self.clause()} {rng.choice(PREPOSITIONS)} {self.noun_phrase()}"
        elif shape < 0.6:
            text = f"{self.clause()} {rng.choice(ADVERBS)}"
        elif shape < 0.75:
            text = f"{self.noun_phrase()} is {rng.choice(self.adjectives)} {rng.choice('and or but'.split())} "
            text += rng.choice(self.adjectives)
        elif shape < 0.87:
            text = f"{rng.choice(QUESTIONS)} {rng.choice(['did', 'can', 'will'])} {rng.choice(SUBJECTS[:12])} "
            text += f"{rng.choice(self.verbs)} {self.noun_phrase()}"
        else:
            text = f"{rng.choice(self.verbs)} {self.noun_phrase()} and {rng.choice(self.verbs)} {rng.choice(ADVERBS)}"
        return text.replace("_", " ")


def corpus_texts(count: int, seed: int, number_share: float = 0.15, date_share: float = 0.1) -> list[str]:
    """Return `count` different texts: digit strings, dates and sentences in the given shares, shuffled."""
    rng = random.Random(seed)
    maker, texts = SentenceMaker(rng), set()
    ordered = []
    while len(ordered) < count:
        draw = rng.random()
        if draw < number_share:
            text = number_text(rng)
        elif draw < number_share + date_share:
            text = date_text(rng) if rng.random() < 0.5 else f"{date_text(rng)} {maker.clause()}".replace("_", " ")
        else:
            text = maker.sentence()
        if text not in texts:
            texts.add(text)
            ordered.append(text)
    return ordered


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
    asked = questions("quick")
    phrasings = [phrasing for question in asked for phrasing in question.phrasings]
    answers = [question.answer for question in asked]
    return [*training_sentences("quick", seed), *phrasings, *answers * ANSWER_RENDERINGS]
