"""Texts as they are read: bare words, and sentences."""

import pytest

from vita_audio.serve.words import bare_words, split_text

TEXT = "One two. Three, four five! Six? "


@pytest.mark.parametrize(
    "text, max_size, parts",
    [
        ("one two, three", 14, ["one two, three"]),
        (TEXT, 100, ["One two.", "Three, four five!", "Six?"]),
        (TEXT, 12, ["One two.", "Three,", "four five!", "Six?"]),
        (TEXT, 6, ["One", "two.", "Three,", "four", "five!", "Six?"]),
        ("版本3.5好。今天天气很好，我们走吧。", 9, ["版本3.5好。", "今天天气很好，", "我们走吧。"]),
        ("x" * 25, 10, ["x" * 10, "x" * 10, "x" * 5]),
        ("\n\none\n \n", 10, ["one"]),
        ("Wait . . . what?\n---\n(1) !!", 8, ["Wait .", "what?", "(1) !!"]),
        ("Dr. Smith has 3. No. 4.", 100, ["Dr. Smith has 3.", "No. 4."]),
        ("Mrs. Li saw St. Paul? No. He did.", 100, ["Mrs. Li saw St. Paul?", "No.", "He did."]),
    ],
)
def test_a_text_is_cut_after_sentences_and_a_long_one_further(text, max_size, parts):
    assert split_text(text, len, max_size) == parts


@pytest.mark.parametrize(
    "text, bare",
    [
        ("What is the capital of Egypt?", "what is the capital of egypt"),
        ("  “Cancel tomorrow’s dentist, please!”  ", "cancel tomorrow's dentist please"),
        ("'Twenty-first' -- 'of' May...", "twenty first of may"),
        ("¿Cuál es la capital de ESPAÑA? ÉL", "cuál es la capital de españa él"),
        ("E\u0301L", "él"),
        ("हिन्दी, 2 x_y", "हिन्दी two x y"),
        ("How much is 3 plus 3?", "how much is three plus three"),
        ("Say 427, or 0.5!", "say four two seven or zero five"),
        ("Say it:\nCairo.\n", "say it\ncairo\n"),
        ("?! ...", "?! ..."),
    ],
)
def test_bare_words_are_in_lower_case_without_marks(text, bare):
    assert bare_words(text) == bare == bare_words(bare)
