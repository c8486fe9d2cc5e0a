"""The demo domain: what is held out occurs nowhere in training, and every text is what its kind says."""

import random

import pytest

from tools.demo.domain import ENGLISH as domain
from tools.demo.domain import SIZES


@pytest.mark.parametrize("seed", [0, 1])
def test_no_held_out_text_occurs_inside_a_training_text(seed):
    training = "\n".join(f" {text} " for text in domain.training_texts("long", seed))
    held_out = [*domain.heldout_sentences("long"), *(item.held_out_phrasing for item in domain.questions("long"))]
    assert len(held_out) == len(set(held_out)) > 200
    assert [text for text in held_out if f" {text} " in training] == []


def test_held_out_texts_do_not_depend_on_the_size():
    small, large = domain.heldout_sentences("ci"), domain.heldout_sentences("long")
    assert {domain.is_held_out(text) for text in small + large} == {True}
    assert not any(map(domain.is_held_out, domain.training_sentences("quick", seed=5)))


def test_a_digit_string_around_a_held_out_one_is_held_out():
    inner = next(text for text in domain.heldout_sentences("quick") if len(text.split()) == 3 and "the" not in text)
    assert domain.is_held_out(f"nine {inner} zero")


def test_a_weekday_does_not_bring_a_held_out_date_into_training():
    dates = [text for text in domain.heldout_sentences("long") if text.split()[-1] in domain.months]
    plain = [text[text.index("the ") :] for text in dates]
    assert len(plain) == 60 and all(domain.is_held_out(f"friday {text}") for text in plain)


def test_sizes_give_the_numbers_they_name():
    size = SIZES["quick"]
    texts = domain.training_sentences("quick")
    assert len(set(texts)) == len(texts) == size["digits"] + size["dates"] + size["sentences"]
    assert sum(set(text.split()) <= set(domain.digits) for text in texts) == size["digits"]
    assert sum(text.split()[-1] in domain.months for text in texts) == size["dates"]


def test_training_texts_follow_the_seed():
    assert domain.training_texts("quick", 3) == domain.training_texts("quick", 3)
    assert domain.training_texts("quick", 3) != domain.training_texts("quick", 4)


def test_dates_exist():
    rng = random.Random(0)
    dates = {domain.date(rng).split(" ", 1)[-1] for _ in range(3000)}
    assert not any("thirty first of june" in date or "thirtieth of february" in date for date in dates)
    assert any(date.endswith("thirty first of december") for date in dates)


def test_sentences_use_right_articles():
    rng = random.Random(0)
    assert not [text for text in (domain.sentence(rng) for _ in range(3000)) if " a o" in text or " a a" in text]


def test_each_question_has_its_own_answer_and_ends_it_with_the_keyword():
    asked = domain.questions("quick")
    assert len({item.answer for item in asked}) == len(asked) == 63
    assert all(item.answer.split()[-1] == item.keyword for item in asked)
    assert all(2 <= len(item.answer.split()) <= 8 for item in asked)


def test_held_out_phrasings_use_wordings_known_from_other_questions():
    for name, topic in domain.topics.items():
        items = [item for item in domain.questions("quick") if item.topic == name]
        known = {phrasing for item in items for phrasing in item.phrasings}
        for item in items:
            assert item.held_out_phrasing not in known and len(item.phrasings) == 4
            (wording,) = [
                w for w in topic.phrasings if item.held_out_phrasing in {w.format(asked=a) for a in topic.facts}
            ]
            assert sum(wording.format(asked=asked) in known for asked in topic.facts) >= len(items) // 2


def test_spoken_form_marks_questions():
    assert domain.spoken("what is one plus two") == "what is one plus two?"
    assert domain.spoken("tell me the capital of france") == "tell me the capital of france."


def test_too_many_texts_are_an_error():
    with pytest.raises(ValueError, match="must yield 5 different texts, got 1"):
        domain.draw(lambda rng: "the same", 5, random.Random(0), held_out=domain.is_held_out("the same"))


FUNCTION_WORDS = {"about", "someone", "should", "where", "which"}


def test_held_out_questions_outside_the_domain_have_other_words_and_forms():
    training = domain.outside_questions("demo")
    assert len(set(training)) == len(training) == SIZES["demo"]["outside"]
    known = {word for text in training for word in text.split()} - FUNCTION_WORDS
    beginnings = {tuple(text.split()[:2]) for text in training}
    held_out = domain.outside.held_out
    assert len(set(held_out)) == 60 and not beginnings & {tuple(text.split()[:2]) for text in held_out}
    assert not {word for text in held_out for word in text.split() if len(word) >= 5} & known


def test_near_questions_share_the_wording_of_the_domain_but_not_its_facts():
    training, asked = set(domain.outside_questions("demo")), domain.questions("demo")
    phrasings = {text for item in asked for text in (*item.phrasings, item.held_out_phrasing)}
    assert not phrasings & {*training, *domain.outside.held_out, *domain.outside.near_held_out}
    assert not training & set(domain.outside.near_held_out) and len(set(domain.outside.near_held_out)) == 20
    wordings = [wording.format(asked="") for topic in domain.topics.values() for wording in topic.phrasings]
    assert all(any(text.startswith(wording) for wording in wordings) for text in domain.outside.near_held_out)


def test_the_refusal_ends_with_its_keyword_and_only_a_size_with_questions_outside_has_any():
    assert domain.outside.answer.split()[-1] == domain.outside.keyword
    assert not domain.outside_questions("quick") and not domain.more_sentences("quick")


def test_more_sentences_are_new_and_not_held_out():
    more = domain.more_sentences("demo")
    assert len(more) == len(set(more)) > 1000 and not set(more) & set(domain.training_sentences("demo"))
    assert not any(map(domain.is_held_out, more))
