"""The texts of the demo corpus: digit strings, dates, simple sentences, and questions with answers.

All texts are in lower case without punctuation, as speech recognition should return them; `spoken` adds the final
punctuation for a synthesiser.

Held-out texts do not depend on size or seed: a checksum decides whether a text is held out, so training texts drawn
here never are. Of each question, one phrasing is held out, but not the answer.
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

HELD_OUT_SHARE = 10  # one text in ten is never used for training
HELD_OUT_SEED = 1
SHORTEST_DIGITS, LONGEST_DIGITS = 3, 5
QUESTION_WORDS = ("what", "which", "who", "how", "do", "can")

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
UNIT_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
TEEN_ORDINALS = (
    *("tenth", "eleventh", "twelfth", "thirteenth", "fourteenth"),
    *("fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth"),
)
DAY_ORDINALS = (
    *UNIT_ORDINALS,
    *TEEN_ORDINALS,
    "twentieth",
    *(f"twenty {unit}" for unit in UNIT_ORDINALS),
    "thirtieth",
    "thirty first",
)
DAYS_PER_MONTH = {
    **{"january": 31, "february": 29, "march": 31, "april": 30, "may": 31, "june": 30},
    **{"july": 31, "august": 31, "september": 30, "october": 31, "november": 30, "december": 31},
}
MONTHS = tuple(DAYS_PER_MONTH)
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

SLOTS = {
    "quality": ("small", "big", "old", "young", "happy", "lazy", "hungry", "quiet", "tall", "clever"),
    "look": ("small", "big", "new", "green", "yellow", "black", "brown", "heavy", "pretty"),
    "being": ("dog", "cat", "horse", "rabbit", "monkey", "teacher", "farmer", "doctor", "student", "sailor"),
    "does": ("sleeps", "sits", "waits", "sings", "plays", "works", "stands", "dances"),
    "place": (
        *("in the garden", "in the kitchen", "in the forest", "near the river", "near the station"),
        *("under the tree", "behind the house", "on the mountain", "at the market", "by the window"),
    ),
    "handles": ("opens", "carries", "finds", "paints", "washes", "buys", "drops", "brings"),
    "thing": ("door", "basket", "letter", "book", "bottle", "ladder", "camera", "piano", "bicycle", "table"),
    "people": ("we", "they", "my friends", "the children"),
    "likes": ("eat", "cook", "want", "love", "share"),
    "food": ("bread", "rice", "soup", "apples", "cheese", "salad", "fish", "potatoes", "cake", "honey"),
    "time": ("every morning", "every evening", "on monday", "on sunday", "after school", "before dinner", "today"),
}
SENTENCE_TEMPLATES = (
    "the {quality} {being} {does} {place}",
    "the {being} {handles} the {look} {thing}",
    "{people} {likes} {food} {time}",
    "there is a {look} {thing} {place}",
)


@dataclass(frozen=True)
class Topic:
    """Questions that share their wording.

    Attributes:
        phrasings: With {asked}.
        answer: With {asked} and, at its end, {keyword}.
        facts: Maps `asked` to `keyword`.
    """

    phrasings: tuple[str, ...]
    answer: str
    facts: dict[str, str]


def _next_in(names: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(names, names[1:] + names[:1], strict=True))


TOPICS = {
    "capital": Topic(
        phrasings=(
            "what is the capital of {asked}",
            "tell me the capital of {asked}",
            "which city is the capital of {asked}",
            "do you know the capital of {asked}",
            "please name the capital of {asked}",
        ),
        answer="the capital of {asked} is {keyword}",
        facts={
            **{"france": "paris", "england": "london", "japan": "tokyo", "egypt": "cairo", "russia": "moscow"},
            **{"germany": "berlin", "greece": "athens", "china": "beijing", "austria": "vienna", "portugal": "lisbon"},
        },
    ),
    "color": Topic(
        phrasings=(
            "what is the color of {asked}",
            "what color is {asked}",
            "which color is {asked}",
            "tell me the color of {asked}",
            "do you know the color of {asked}",
        ),
        answer="the color of {asked} is {keyword}",
        facts={
            **{"grass": "green", "the sky": "blue", "snow": "white", "a plum": "purple"},
            **{"coal": "black", "chocolate": "brown", "a carrot": "orange", "an elephant": "gray"},
        },
    ),
    "opposite": Topic(
        phrasings=(
            "what is the opposite of {asked}",
            "tell me the opposite of {asked}",
            "which word is the opposite of {asked}",
            "do you know the opposite of {asked}",
            "please name the opposite of {asked}",
        ),
        answer="the opposite of {asked} is {keyword}",
        facts={
            **{"full": "empty", "day": "night", "big": "small", "young": "old", "winter": "summer", "north": "south"},
            **{"brother": "sister", "mother": "father", "always": "never", "everybody": "nobody"},
            **{"difficult": "easy", "quiet": "noisy"},
        },
    ),
    "sum": Topic(
        phrasings=(
            "what is {asked}",
            "how much is {asked}",
            "tell me the sum of {asked}",
            "do you know the sum of {asked}",
            "can you add {asked}",
        ),
        answer="{asked} is {keyword}",
        facts={
            **{"one plus two": "three", "two plus three": "five", "three plus three": "six"},
            **{"four plus three": "seven", "five plus four": "nine", "five plus five": "ten"},
            **{"six plus five": "eleven", "six plus six": "twelve"},
        },
    ),
    "weekday": Topic(
        phrasings=(
            "which day comes after {asked}",
            "what day comes after {asked}",
            "tell me the day after {asked}",
            "do you know the day after {asked}",
            "please name the day after {asked}",
        ),
        answer="the day after {asked} is {keyword}",
        facts=_next_in(WEEKDAYS),
    ),
    "month": Topic(
        phrasings=(
            "which month comes after {asked}",
            "what month comes after {asked}",
            "tell me the month after {asked}",
            "do you know the month after {asked}",
            "please name the month after {asked}",
        ),
        answer="the month after {asked} is {keyword}",
        facts=_next_in(MONTHS),
    ),
    "work": Topic(
        phrasings=(
            "which people {asked}",
            "name the workers that {asked}",
            "do you know the people that {asked}",
            "tell me the workers who {asked}",
            "who are the people who {asked}",
        ),
        answer="the people who {asked} are {keyword}",
        facts={
            "bake bread": "bakers",
            "teach children": "teachers",
            "grow food": "farmers",
            "fly planes": "pilots",
            "sail ships": "sailors",
            "paint pictures": "painters",
        },
    ),
}


@dataclass(frozen=True)
class Question:
    """A question about one fact, and its answer.

    Attributes:
        phrasings: For training.
        held_out_phrasing: For evaluation.
        keyword: Last word of the answer, sufficient to judge it.
    """

    topic: str
    phrasings: tuple[str, ...]
    held_out_phrasing: str
    answer: str
    keyword: str


@dataclass(frozen=True)
class CorpusSize:
    """Numbers of texts of each kind, and of renderings of each text.

    Attributes:
        held_out: Texts for each of digits, dates and sentences.
        question_renderings: For each training phrasing.
    """

    digits: int
    dates: int
    sentences: int
    questions: int
    held_out: int
    sentence_renderings: int
    question_renderings: int
    answer_renderings: int


SIZES = {
    "ci": CorpusSize(4, 2, 4, 4, 2, 1, 1, 1),
    "quick": CorpusSize(540, 360, 820, 63, 20, 1, 2, 3),
    "long": CorpusSize(1500, 600, 2200, 63, 60, 2, 4, 8),
}


def spoken(text: str) -> str:
    """Return a text with the question mark or full stop that a synthesiser needs."""
    return text + ("?" if text.split()[0] in QUESTION_WORDS else ".")


def is_held_out(text: str) -> bool:
    """Return whether a digit string, date or sentence is held out from training.

    A date is judged without its weekday, and a digit string is held out if any part of it is, so that evaluated texts
    do not occur in training, not even within a longer text.
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
    template = rng.choice(SENTENCE_TEMPLATES)
    return template.format(**{slot: rng.choice(words) for slot, words in SLOTS.items()})


def draw(make: Callable[[random.Random], str], count: int, rng: random.Random, *, held_out: bool) -> list[str]:
    """Draw `count` different texts from `make`, all held out or all not.

    Raises: ValueError if `make` does not yield enough different texts.
    """
    texts: dict[str, None] = {}
    for _ in range(1000 + 100 * count):
        if len(texts) == count:
            return list(texts)
        text = make(rng)
        if is_held_out(text) == held_out:
            texts[text] = None
    if len(texts) == count:
        return list(texts)
    raise ValueError(f"{make.__name__} must yield {count} different texts, got {len(texts)}; ask for fewer")


def training_sentences(size: str, seed: int = 0) -> list[str]:
    """Return digit strings, dates and sentences for training, shuffled; none is in `heldout_sentences` of any size."""
    counts, rng = corpus_size(size), random.Random(f"train {seed}")
    texts = [
        *draw(digit_string, counts.digits, rng, held_out=False),
        *draw(date, counts.dates, rng, held_out=False),
        *draw(sentence, counts.sentences, rng, held_out=False),
    ]
    rng.shuffle(texts)
    return texts


def heldout_sentences(size: str) -> list[str]:
    """Return digit strings, dates and sentences for evaluation, alternating between the three kinds."""
    count, rng = corpus_size(size).held_out, random.Random(HELD_OUT_SEED)
    kinds = [draw(make, count, rng, held_out=True) for make in (digit_string, date, sentence)]
    return [text for group in zip(*kinds, strict=True) for text in group]


def questions(size: str) -> list[Question]:
    """Return the questions of a corpus, alternating between topics; the held-out phrasing rotates within a topic."""
    per_topic = [[_question(name, index) for index in range(len(topic.facts))] for name, topic in TOPICS.items()]
    longest = max(map(len, per_topic))
    mixed = [column[index] for index in range(longest) for column in per_topic if index < len(column)]
    return mixed[: corpus_size(size).questions]


def training_texts(size: str, seed: int = 0) -> list[str]:
    """Return every text that is spoken in training: sentences, training phrasings, answers."""
    asked = [phrasing for question in questions(size) for phrasing in question.phrasings]
    return [*training_sentences(size, seed), *asked, *(question.answer for question in questions(size))]


def heldout_texts(size: str) -> list[str]:
    """Return every text that training must not contain: held-out sentences and phrasings."""
    return [*heldout_sentences(size), *(question.held_out_phrasing for question in questions(size))]


def corpus_size(size: str) -> CorpusSize:
    """Return the size of a name in `SIZES`.

    Raises: ValueError for an unknown name.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    return SIZES[size]


def _question(topic_name: str, index: int) -> Question:
    topic = TOPICS[topic_name]
    asked, keyword = list(topic.facts.items())[index]
    phrasings = [phrasing.format(asked=asked) for phrasing in topic.phrasings]
    held_out = phrasings.pop(index % len(phrasings))
    answer = topic.answer.format(asked=asked, keyword=keyword)
    return Question(topic_name, tuple(phrasings), held_out, answer, keyword)
