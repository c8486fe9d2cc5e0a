"""Vocabulary and encodings of the extended text tokenizer, against the reference."""

import json
import shutil
from pathlib import Path

import pytest
from files.broken_folders import make_pointer
from transformers import AutoTokenizer

from vita_audio.text import TextTokenizer

ASSETS = Path(__file__).parent / "assets"
TINY = ASSETS / "tiny_tokenizer"
CASES = json.loads((ASSETS / "data/tokenizer_encodings.json").read_text(encoding="utf-8"))["cases"]
TEMPLATES = json.loads((ASSETS / "prompts/chat_templates.json").read_text(encoding="utf-8"))["cases"]


def load(name):
    num_audio_codes = 0 if name.endswith("None") else 16384
    return TextTokenizer.from_pretrained(TINY, num_audio_codes, continuous_input="sensevoice" in name)


@pytest.mark.parametrize("name", [name for name in CASES if not name.endswith("base")])
def test_vocabulary_and_encodings_equal_reference(name):
    case, tokenizer = CASES[name], load(name)
    assert len(tokenizer) == case["len"]
    vocabulary = tokenizer.base.get_vocab()
    assert {token: vocabulary.get(token) for token in case["added_token_ids"]} == case["added_token_ids"]
    assert tokenizer.pad_id == case["pad"] and tokenizer.im_end_id == case["eos"]
    for encoding in case["encodings"]:
        ids = tokenizer.encode(encoding["text"])
        assert ids == encoding["ids"]
        assert tokenizer.base.decode(ids) == encoding["decoded"]
        assert tokenizer.base.decode(ids, skip_special_tokens=True) == encoding["decoded_skip_special"]


def test_embedding_rows_are_a_multiple_of_eight():
    tokenizer = TextTokenizer.from_pretrained(TINY, 100)
    assert len(tokenizer) == 736 + 20 + 100
    assert tokenizer.padded_size == 856
    assert TextTokenizer.from_pretrained(TINY, 101).padded_size == 864


def test_saved_tokenizer_loads_with_the_same_ids(tmp_path):
    tokenizer = TextTokenizer.from_pretrained(TINY, 64, continuous_input=True)
    tokenizer.save_pretrained(tmp_path)
    again = TextTokenizer.from_pretrained(tmp_path)
    assert again.num_audio_codes == 64
    assert again.base.get_vocab() == tokenizer.base.get_vocab()
    assert again.context_of_audio_id == tokenizer.context_of_audio_id is not None
    assert again.fingerprint == tokenizer.fingerprint
    assert again.fingerprint != TextTokenizer.from_pretrained(TINY, 65, continuous_input=True).fingerprint


def test_vocabulary_of_another_audio_tokenizer_is_refused(tmp_path):
    TextTokenizer.from_pretrained(TINY, 64).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="already has 64 audio codes, the audio tokenizer has 128"):
        TextTokenizer.from_pretrained(tmp_path, 128)


def test_tokenizer_without_chatml_is_refused():
    base = AutoTokenizer.from_pretrained(TINY)
    vocabulary = base.get_vocab()
    base.get_vocab = lambda: {token: i for token, i in vocabulary.items() if token != "<|im_end|>"}
    with pytest.raises(ValueError, match=r"lacks \['<\|im_end\|>'\]"):
        TextTokenizer(base, 4)


def test_generated_ids_split_into_text_and_codes():
    tokenizer = TextTokenizer.from_pretrained(TINY, 32)
    ids = [*tokenizer.encode("Hello"), tokenizer.begin_of_audio_id, *tokenizer.audio_ids([0, 31, 7])]
    ids += [tokenizer.end_of_audio_id, *tokenizer.encode(" world"), tokenizer.im_end_id]
    text_ids, codes = tokenizer.split(ids)
    assert codes == [0, 31, 7]
    assert not any(tokenizer.is_audio(i) for i in text_ids) and len(text_ids) == len(ids) - 3
    assert tokenizer.decode(ids) == "Hello world"


@pytest.mark.parametrize("codes", [[0, 32], [-1, 3]])
def test_code_outside_the_codebook_is_refused(codes):
    with pytest.raises(ValueError, match=r"audio codes must be in 0\.\.31"):
        TextTokenizer.from_pretrained(TINY, 32).audio_ids(codes)


@pytest.mark.parametrize("case", TEMPLATES, ids=lambda case: f"{case['conversation']}-{case['add_generation_prompt']}")
def test_chat_template_equals_reference(case):
    base = TextTokenizer.from_pretrained(TINY, 4).base
    options = {"tools": case["tools"], "add_generation_prompt": case["add_generation_prompt"]}
    assert base.apply_chat_template(case["messages"], tokenize=False, **options) == case["rendered"]


def test_chat_template_with_tools_needs_no_system_turn():
    base = TextTokenizer.from_pretrained(TINY, 4).base
    tools = [{"type": "function", "function": {"name": "w", "parameters": {}}}]
    text = base.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, tools=tools)
    assert text.startswith("<|im_start|>system\n# Tools\n\n") and text.endswith("<|im_start|>user\nhi<|im_end|>\n")


def test_older_files_of_a_tokenizer_give_the_same_ids(tmp_path):
    """Vocabulary and merges in files of their own, as slow tokenizers are saved."""
    whole = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"] for token in whole["added_tokens"]}
    vocabulary = {token: i for token, i in whole["model"]["vocab"].items() if token not in special}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in whole["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    shutil.copy(TINY / "tokenizer_config.json", tmp_path)
    older, tokenizer = TextTokenizer.from_pretrained(tmp_path, 16384), TextTokenizer.from_pretrained(TINY, 16384)
    assert older.base.get_vocab() == tokenizer.base.get_vocab()
    for encoding in CASES["tiny_tokenizer/glm4voice"]["encodings"]:
        assert older.encode(encoding["text"]) == encoding["ids"]


def test_missing_and_damaged_tokenizer_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no text tokenizer in {tmp_path}: neither tokenizer.json nor"):
        TextTokenizer.from_pretrained(tmp_path)
    make_pointer(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="tokenizer.json is a Git LFS pointer"):
        TextTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="merges.txt is missing"):
        TextTokenizer.from_pretrained(tmp_path)
