"""Texts for codec training: varied, different from each other, the same for the same seed."""

import pytest

pytest.importorskip("wonderwords")

from tools.codec.texts import DAYS, DIGITS, WORDS, corpus_texts, frequent_texts  # noqa: E402

MULTIWORD = {phrase.replace("_", " ") for phrase in WORDS["prepositions"] if "_" in phrase}


def test_texts_are_different_spoken_words_and_follow_from_the_seed():
    texts = corpus_texts(400, seed=1)
    assert len(set(texts)) == len(texts) == 400
    assert all(set(text) <= set("abcdefghijklmnopqrstuvwxyz' ") and 2 <= len(text.split()) <= 20 for text in texts)
    assert corpus_texts(400, seed=1) == texts
    assert corpus_texts(400, seed=2) != texts


def test_every_kind_has_its_share():
    texts = corpus_texts(1200, seed=0)
    numbers = [text for text in texts if set(text.split()) <= set(DIGITS)]
    dates = [text for text in texts if text not in numbers and (" of " in f"{text} " or text.split()[0] in DAYS)]
    assert len(numbers) == pytest.approx(180, abs=45)
    assert dates and len(texts) - len(numbers) - len(dates) > 200
    assert any(phrase in text for text in texts for phrase in MULTIWORD)
    assert {word for text in numbers for word in text.split()} == set(DIGITS)


def test_frequent_words_are_plain_and_varied_and_follow_from_the_seed():
    pytest.importorskip("wordfreq")
    texts = frequent_texts(300, seed=1)
    words = [word for text in texts for word in text.split()]
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    assert all(4 <= len(text.split()) <= 9 for text in texts)
    assert len(set(words)) > 1000 and "the" in words  # flat enough to be varied, yet by frequency
    assert frequent_texts(300, seed=1) == texts != frequent_texts(300, seed=2)
