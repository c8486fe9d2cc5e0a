"""Sampling with verification has the backbone's distribution at acceptance 1, and a stated one below."""

from itertools import product

import pytest
import torch
from toy_models import make_agreeing_model, make_model

from vita_audio.models.verification import judge_sampled

PROMPT, NUM_NEW, NUM_WORDS, END = [5, 3, 8], 4, 12, 2
WARPERS = {"temperature": 1.3, "top_k": 9, "repetition_penalty": 1.3}
OPTIONS = {"do_sample": True, "max_new_tokens": NUM_NEW, "eos_token_id": END, "pad_token_id": 0, "top_p": 1.0}


def toy_model(kind):
    """Make a model of 12 words whose modules are of some use, of none, or sure of something else."""
    sizes = {"vocab_size": NUM_WORDS, "hidden_size": 16}
    if kind == "agreeing":
        return make_agreeing_model(3, disagreement=0.2, **sizes)
    model = make_model(3, **sizes)
    if kind == "wrong":
        with torch.no_grad():
            for layer in model.model.layers[2:]:  # those of the modules
                layer.mlp.down_proj.weight *= 20
    return model


def answer_probabilities(model, warpers):
    """Return all answers, ended or of full length, with their probabilities, from the backbone alone."""
    answers = {(): 1.0}
    for _ in range(NUM_NEW):
        grown = {}
        open_answers = [answer for answer in answers if END not in answer]
        prompts = torch.tensor([[*PROMPT, *answer] for answer in open_answers])
        output = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),  # otherwise transformers takes the word 0 for padding
            **OPTIONS | warpers | {"max_new_tokens": 1},
            mtp_inference_mode="vanilla",
            return_dict_in_generate=True,
            output_scores=True,
        )
        for answer, probs in zip(open_answers, output.scores[0].double().softmax(dim=-1).tolist(), strict=True):
            pairs = ((token, answers[answer] * prob) for token, prob in enumerate(probs) if prob > 0)
            grown |= {(*answer, token): prob for token, prob in pairs}
        answers = {answer: prob for answer, prob in answers.items() if END in answer} | grown
    return answers


def sampled_answers(model, warpers, num_draws, acceptance, plan, batch_size=2000):
    """Count answers drawn in batches."""
    counts = {}
    prompts = torch.tensor([PROMPT] * batch_size)
    options = OPTIONS | warpers | {"mtp_inference_mode": plan, "acceptance": acceptance}
    for _ in range(num_draws // batch_size):
        for row in model.generate(prompts, **options)[:, len(PROMPT) :].tolist():
            answer = tuple(row[: row.index(END) + 1] if END in row else row)
            counts[answer] = counts.get(answer, 0) + 1
    return counts


def p_value(counts, probabilities):
    """Chi-square test; answers that are expected fewer than five times are joined, and impossible ones fail it."""
    if not set(counts) <= set(probabilities):
        return 0.0
    num_draws = sum(counts.values())
    rare = [answer for answer, prob in probabilities.items() if prob * num_draws < 5]
    expected = [prob * num_draws for answer, prob in probabilities.items() if prob * num_draws >= 5]
    observed = [counts.get(answer, 0) for answer, prob in probabilities.items() if prob * num_draws >= 5]
    if rare:
        expected.append(sum(probabilities[answer] for answer in rare) * num_draws)
        observed.append(sum(counts.get(answer, 0) for answer in rare))
    expected, observed = torch.tensor([expected, observed], dtype=torch.float64)
    statistic, freedom = ((observed - expected) ** 2 / expected).sum(), len(expected) - 1
    return torch.special.gammaincc(torch.tensor(freedom / 2, dtype=torch.float64), statistic / 2).item()


@pytest.mark.parametrize(
    "num_draws", [pytest.param(4_000, id="few"), pytest.param(200_000, id="many", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("warpers", [{"top_k": 0}, WARPERS], ids=["plain", "warped"])
@pytest.mark.parametrize("kind", ["agreeing", "random", "wrong"])
def test_acceptance_one_samples_from_the_backbone(num_draws, warpers, kind):
    """Answers of the modules alone would fail the same test."""
    model = toy_model(kind)
    torch.manual_seed(0)
    probabilities = answer_probabilities(model, warpers)
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5) and len(probabilities) > 1000
    verified = sampled_answers(model, warpers, num_draws, 1, [1, 10])
    assert p_value(verified, probabilities) > 0.001
    committed = sampled_answers(model, warpers, 4000, 0, [1, 10])
    assert p_value(committed, probabilities) < 1e-6


@pytest.mark.parametrize("acceptance", [0.2, 0.5, 0.9, 1.0])
def test_distribution_of_a_judged_draft(acceptance):
    """min(q, p / acceptance), and what is left of the probability is distributed as max(0, p - q)."""
    generator = torch.Generator().manual_seed(3)
    scores, draft_probs = torch.randn(6, generator=generator) * 2, torch.rand(6, generator=generator)
    scores[4] = -torch.inf
    draft_probs[1] = 0
    draft_probs /= draft_probs.sum()
    probs = scores.softmax(dim=-1)
    accepted = torch.minimum(draft_probs, probs / acceptance)
    residual = (probs - draft_probs).clamp(min=0)
    expected = accepted + (1 - accepted.sum()) * residual / residual.sum()
    assert (expected <= probs / acceptance + 1e-6).all()
    torch.manual_seed(0)
    drafts = torch.multinomial(draft_probs, 20_000, replacement=True)[:, None]
    accepted_drafts, tokens = judge_sampled(
        scores.expand(20_000, 2, -1),
        drafts,
        torch.ones(20_000, dtype=torch.int64),
        acceptance,
        draft_probs=draft_probs.expand(20_000, 1, -1),
    )
    num_accepted = int(accepted_drafts.sum())
    counts = torch.bincount(torch.where(accepted_drafts == 1, drafts[:, 0], tokens), minlength=6)
    assert counts[4] == 0
    kept = expected > 0
    p = p_value(
        dict(enumerate(counts[kept].tolist())),
        dict(enumerate(expected[kept].tolist())),
    )
    assert p > 0.001
    assert num_accepted / 20_000 == pytest.approx(accepted.sum().item(), abs=0.015)


def test_equal_distributions_accept_everything():
    probs = torch.rand(5).log_softmax(dim=-1).exp()
    drafts, scores = torch.arange(5)[None], probs.log().expand(1, 6, -1)
    for number in range(6):
        numbers = torch.tensor([number])
        accepted, _ = judge_sampled(scores, drafts, numbers, 0.999, draft_probs=probs.expand(1, 5, -1))
        assert accepted.item() == number


def test_a_seed_repeats_a_sampled_answer():
    model, ids = toy_model("agreeing"), torch.tensor([PROMPT, PROMPT])
    options = OPTIONS | WARPERS | {"max_new_tokens": 20, "mtp_inference_mode": "boost", "acceptance": 0.5}
    answers = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        answers.append(model.generate(ids, **options).tolist())
    assert answers[0] == answers[1] != answers[2]
    assert answers[0][0] != answers[0][1]


@pytest.mark.parametrize("places", list(product([0, 1], repeat=2)))
def test_narrow_sampling_is_greedy(places):
    """With one token left to choose, sampling has no freedom, whatever the acceptance."""
    model, ids = toy_model("agreeing"), torch.tensor([PROMPT])
    acceptance, seed = 0.3 + 0.7 * places[0], places[1]
    torch.manual_seed(seed)
    options = {"max_new_tokens": 20, "mtp_inference_mode": "boost"}
    sampled = model.generate(ids, **options, do_sample=True, top_k=1, acceptance=acceptance)
    assert sampled.tolist() == model.generate(ids, **options, do_sample=False, acceptance=1).tolist()
