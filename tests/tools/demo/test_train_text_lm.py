"""The text model's pretraining: what it draws, how it judges, that it resumes; and the weights that ship."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tools.demo import text_lm_training, train_text_lm
from tools.demo.domain import ENGLISH
from vita_audio.constants import IGNORE_INDEX
from vita_audio.text import TextTokenizer

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "vita_audio" / "assets" / "tiny_text_lm"
QUESTION = ("tell me the capital of france", "the capital of france is paris")


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.from_pretrained(SHIPPED)


@pytest.fixture(scope="module")
def small_config(tmp_path_factory) -> Path:
    sizes = json.loads((ROOT / "configs" / "models" / "tiny_mtp0.json").read_text())
    sizes |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    path = tmp_path_factory.mktemp("config") / "small.json"
    path.write_text(json.dumps(sizes))
    return path


def test_only_the_answer_and_what_closes_it_is_learnt(tokenizer):
    ids, labels = text_lm_training.encode_chats([QUESTION, text_lm_training.repeat("four seven one")], tokenizer)
    learnt = [row[row != IGNORE_INDEX].tolist() for row in labels]
    assert [tokenizer.base.decode(row) for row in learnt] == [
        f"{QUESTION[1]}<|im_end|>\n",
        "four seven one<|im_end|>\n",
    ]
    assert torch.equal(ids[labels != IGNORE_INDEX], labels[labels != IGNORE_INDEX])
    unpadded = tokenizer.base.decode(ids[1][ids[1] != tokenizer.pad_id])
    assert unpadded.startswith(
        "<|im_start|>user\nConvert the text to speech.\nfour seven one<|im_end|>\n<|im_start|>assi"
    )


def test_training_chats_hold_no_held_out_text():
    source, rng = text_lm_training.ChatSource(), random.Random(0)
    answers = [source.draw(rng)[1] for _ in range(3000)]
    held_out = {answer for chats in text_lm_training.evaluation_chats().values() for _, answer in chats}
    questions_only = {chat[1] for chat in text_lm_training.evaluation_chats()["answers"]}
    assert not set(answers) & (held_out - questions_only)
    digits = [text for text in answers if set(text.split()) <= set(ENGLISH.digits)]
    assert len(digits) > 500 and not any(map(ENGLISH.is_held_out, digits))


def test_held_out_phrasings_are_never_asked():
    source, rng = text_lm_training.ChatSource(), random.Random(0)
    drawn = {text for _ in range(5000) for text in source.draw(rng)}
    unseen = {question for question, _ in text_lm_training.evaluation_chats()["answers_to_new_phrasings"]}
    assert not drawn & unseen and len(unseen) == 63


def test_a_batch_depends_on_its_number_only(tokenizer):
    straight, resumed = (text_lm_training.ChatBatches(tokenizer, 4, seed=1) for _ in range(2))
    batches = [straight[step] for step in range(11)]
    assert torch.equal(resumed[10][0], batches[10][0]) and torch.equal(resumed[3][1], batches[3][1])
    assert not torch.equal(batches[0][0], batches[8][0])


def test_exact_share_is_that_of_greedy_decoding(tokenizer, small_config):
    model = text_lm_training.build_model(small_config, tokenizer.base, seed=0)
    loss, batch = text_lm_training.TextLoss(model), text_lm_training.encode_chats([QUESTION], tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss(batch)["total"].backward()
        optimizer.step()
    other = (QUESTION[0], "the capital of italy is rome")
    assert text_lm_training.exact_share(model, [QUESTION, other], tokenizer) == 0.5
    prompt = batch[0][:, : int((batch[1] != IGNORE_INDEX).int().argmax())]
    generated = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False)
    assert tokenizer.decode(generated[0, prompt.shape[1] :]) == QUESTION[1]


def test_a_stopped_run_continues_and_exports_a_plain_qwen2(tokenizer, small_config, tmp_path, capsys):
    def train(output: str, steps: int) -> None:
        options = f"--steps {steps} --batch-size 2 --warmup 2 --save-every 2 --device cpu --no-bf16".split()
        paths = {
            "config": small_config,
            "tokenizer": SHIPPED,
            "output": tmp_path / output,
            "export": tmp_path / "model",
        }
        train_text_lm.main([*options, *(part for name, path in paths.items() for part in (f"--{name}", str(path)))])

    train("run", 2)
    train("run", 4)
    assert "continuing at step 2 of 4" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(model).__name__ == "Qwen2ForCausalLM" and model.dtype == torch.bfloat16
    assert model.config.vocab_size == len(TextTokenizer.from_pretrained(tmp_path / "model").base) - 17
    assert model.config.tie_word_embeddings and model.config.eos_token_id == tokenizer.im_end_id
    weights, new = tmp_path / "model" / "model.safetensors", tmp_path / "new"
    new.touch()
    assert weights.stat().st_mode == new.stat().st_mode


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_shipped_model_repeats_unseen_texts_and_answers(tokenizer, dtype):
    model = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=dtype)
    chats = text_lm_training.evaluation_chats()
    shares = {name: text_lm_training.exact_share(model, chats[name], tokenizer) for name in chats}
    assert min(shares.values()) >= 0.97, shares
    assert shares["answers"] == 1.0


def test_the_shipped_files_stay_small():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 4_500_000
