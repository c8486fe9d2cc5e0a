"""The tiny tokenizer: any text survives, pieces are cut as in Qwen2, the domain takes one token a word."""

import pytest
from transformers import AutoTokenizer

from tools.demo import make_tokenizer
from tools.demo.domain import ENGLISH
from vita_audio.text import TextTokenizer

GOLDEN = "tests/assets/tiny_tokenizer"  # of the same kind as the tokenizer of Qwen2


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer.main(["--out", str(folder)])
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", ["four seven one", "It's 3 o'clock.\n\n  Où? 我们 🙂", "  two  spaces ", "a\r\n\tb"])
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "text", ["I'll be 42 in may, y'know?\n\n \n Yes!!\n", "  lead and trail  ", "我们 don't\tstop"]
)
def test_text_is_cut_into_pieces_as_in_qwen2(tokenizer, text, request):
    golden = AutoTokenizer.from_pretrained(request.config.rootpath / GOLDEN)
    pieces = [item.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text) for item in (tokenizer, golden)]
    assert pieces[0] == pieces[1]


def test_special_tokens_are_the_last_ids_and_are_found_in_text(tokenizer):
    last = tokenizer.convert_ids_to_tokens([len(tokenizer) - 3, len(tokenizer) - 2, len(tokenizer) - 1])
    assert last == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.encode("<|im_start|>user") == [len(tokenizer) - 2, *tokenizer.encode("user")]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")


def test_a_word_of_the_domain_is_a_token(tokenizer):
    assert all(len(tokenizer.encode(f" {item.keyword}")) == 1 for item in ENGLISH.questions("quick"))
    texts = [*ENGLISH.heldout_sentences("quick"), *(item.held_out_phrasing for item in ENGLISH.questions("quick"))]
    assert sum(len(tokenizer.encode(text)) for text in texts) <= 1.02 * sum(len(text.split()) for text in texts)


def test_audio_codes_can_be_added(tokenizer):
    text_size = len(tokenizer)
    extended = TextTokenizer.from_pretrained(tokenizer.name_or_path, num_audio_codes=16)
    assert extended.first_audio_id > text_size and len(extended) == extended.first_audio_id + 16
    assert extended.decode(extended.encode("one two")) == "one two"


def test_impossible_sizes_are_errors():
    with pytest.raises(ValueError, match="vocab_size must be at least 259, got 100"):
        make_tokenizer.train_tokenizer(["one two"], 100)
    with pytest.raises(ValueError, match="the texts give only .* entries; lower vocab_size 500"):
        make_tokenizer.train_tokenizer(["one two"], 500)
