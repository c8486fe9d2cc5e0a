import copy
import itertools

import pytest
import torch
from datasets import Dataset
from models.toy_models import make_model

from vita_audio.data.code_noise import CodeNoise
from vita_audio.data.collator import PackCollator
from vita_audio.models.surgery import mtp_parameter_patterns, set_trainable
from vita_audio.speech_features import SenseVoiceFrontEnd
from vita_audio.training.curriculum import LengthCurriculum
from vita_audio.training.curves import summarise, training_entries
from vita_audio.training.trainer import SpeechTrainer, SpeechTrainingArguments, depth_name

NUM_MODULES = 2
COLLATOR = PackCollator(pad_id=100)  # an id that no pack has


@pytest.fixture
def packs():
    """Eight packs of two documents each, of different lengths, the first third of each document without labels."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(8):
        lengths = (6 + number, 20 - 2 * number)
        ids = torch.randint(0, 100, (sum(lengths),), generator=generator)
        position_ids = torch.cat([torch.arange(length) for length in lengths])
        limit = torch.cat([torch.full((length,), length // 3) for length in lengths])
        labels = ids.where(position_ids >= limit, -100)
        rows.append({"input_ids": ids, "labels": labels, "position_ids": position_ids})
    return Dataset.from_list([{name: values.tolist() for name, values in row.items()} for row in rows])


@pytest.fixture
def make_trainer(tmp_path, packs):
    def make(model, collator=COLLATOR, curriculum=None, front_end=None, code_noise=None, **arguments):
        arguments = {
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "max_steps": 1,
            "logging_steps": 1,
            "per_device_train_batch_size": 2,
            "max_grad_norm": 0.0,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        } | arguments
        training_arguments = SpeechTrainingArguments(output_dir=str(tmp_path), **arguments)
        return SpeechTrainer(
            model=model,
            args=training_arguments,
            train_dataset=packs,
            data_collator=collator,
            curriculum=curriculum,
            front_end=front_end,
            code_noise=code_noise,
        )

    return make


@pytest.fixture
def train_on(packs, make_trainer):
    """Train a model for one step on all packs; return the log entry."""

    def train(model, **options):
        trainer = make_trainer(model, per_device_train_batch_size=8, **options)
        trainer.train()
        return training_entries(trainer.state.log_history)[0]

    return train


def is_mtp(name):
    return name.startswith(("model.layers.2.", "model.layers.3.", "mtp_"))


def largest_changes(before, after):
    """Return the largest change among backbone parameters and among those of MTP modules."""
    changes = {name: (value - after[name]).abs().max().item() for name, value in before.items()}
    return (max(change for name, change in changes.items() if is_mtp(name) is part) for part in (False, True))


def test_groups_split_by_learning_rate_and_decay(make_trainer):
    model = make_model(NUM_MODULES)
    trainer = make_trainer(model, weight_decay=0.1, mtp_model_lr_mult=10.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen = []
    for group in trainer.parameter_groups(model):
        for parameter in group["params"]:
            name = names[parameter]
            seen.append(name)
            assert group["lr"] == pytest.approx(1e-2 if is_mtp(name) else 1e-3), name
            assert group["weight_decay"] == (0.1 if parameter.ndim == 2 else 0.0), name
    assert sorted(seen) == sorted(names.values())


def test_groups_hold_only_what_trains(make_trainer):
    model = make_model(NUM_MODULES)
    set_trainable(model, mtp_parameter_patterns(model.config))
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = make_trainer(model).parameter_groups(model)
    assert {names[parameter] for group in groups for parameter in group["params"]} == set(
        filter(is_mtp, names.values())
    )


def test_a_model_without_anything_to_train_is_refused(make_trainer):
    model = make_model(0).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter trains"):
        make_trainer(model).create_optimizer()


def test_modules_learn_at_their_own_rate(make_trainer):
    model = make_model(NUM_MODULES)
    before = copy.deepcopy(model.state_dict())
    trainer = make_trainer(model, mtp_model_lr_mult=10.0)
    trainer.train()
    backbone, modules = largest_changes(before, model.state_dict())  # the first step of Adam is the learning rate
    assert backbone == pytest.approx(1e-3, rel=1e-2)
    assert modules == pytest.approx(1e-2, rel=1e-2)
    entry = trainer.state.log_history[0]
    assert (entry["learning_rate"], entry["mtp_learning_rate"]) == pytest.approx((1e-3, 1e-2))


def test_log_averages_over_all_targets_since_the_last_entry(make_trainer, packs):
    model = make_model(NUM_MODULES, mtp_coordinator_weight=0.5)
    model.config.mtp_kl_weight = 0.5
    reference = copy.deepcopy(model)
    trainer = make_trainer(model, learning_rate=0.0, max_steps=2, gradient_accumulation_steps=2, logging_steps=2)
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    sums, mixture = torch.zeros(5, 1 + NUM_MODULES), 0.0
    for pack in packs:  # two steps of two batches of two packs are all of them
        batch = COLLATOR([pack])
        output = reference(**batch, use_cache=False)
        losses = torch.cat([output.main_loss[None], output.mtp_losses])
        divergences = torch.cat([torch.zeros(1), output.mtp_kl])
        weights = torch.cat([torch.zeros(1), output.mixture_weights])
        rows = torch.stack([losses, output.accuracies, torch.ones_like(losses), divergences, weights])
        sums += rows * output.num_targets
        mixture += output.mixture * output.num_targets[1]
    assert entry["mixture_loss"] == pytest.approx((mixture / sums[2, 1]).item(), rel=1e-4)
    for depth, (loss, num_correct, count, divergence, weight) in enumerate(sums.T.tolist()):
        assert entry[f"{depth_name(depth)}_loss"] == pytest.approx(loss / count, rel=1e-4)
        assert entry[f"{depth_name(depth)}_accuracy"] == pytest.approx(num_correct / count, rel=1e-4)
        assert entry.get(f"{depth_name(depth)}_kl", 0.0) == pytest.approx(divergence / count, rel=1e-4)
        assert entry.get(f"{depth_name(depth)}_mixture_weight", 0.0) == pytest.approx(weight / count, rel=1e-4)
    batches = [packs.select(range(start, start + 2)) for start in range(0, 8, 2)]
    assert entry["num_tokens"] >= sum(len(pack["input_ids"]) for batch in batches for pack in batch)
    assert entry["tokens_per_second"] > 0 and entry["minutes"] > 0


def test_a_frozen_backbone_is_scored_at_times(make_trainer):
    histories = []
    for log_main_loss in (1, 3):
        model = make_model(NUM_MODULES)
        set_trainable(model, mtp_parameter_patterns(model.config))
        trainer = make_trainer(model, max_steps=6, log_main_loss=log_main_loss)
        trainer.train()
        histories.append(trainer.state.log_history)
    entries, some = (training_entries(history) for history in histories)
    assert [entry["step"] for entry in some if "main_loss" in entry] == [1, 4, 6]
    for entry, expected in zip(some, entries, strict=True):
        names = entry.keys()
        if "main_loss" not in entry:
            names = expected.keys() - {"main_loss", "main_accuracy", "mtp_0_agreement", "mtp_1_agreement"}
        assert entry.keys() == names
        for name in names - {"minutes", "eta_minutes", "tokens_per_second"}:
            assert entry[name] == pytest.approx(expected[name], rel=1e-6), name
    assert summarise(histories[1])["final_losses"] == pytest.approx(summarise(histories[0])["final_losses"])


def test_log_tells_text_from_audio_and_tokens_from_padding(train_on, packs):
    model = make_model(NUM_MODULES)
    batch = COLLATOR(list(packs))
    reference = copy.deepcopy(model)
    entry = train_on(model, code_noise=CodeNoise(0.0, range(60, 100)))
    labels = batch.pop("labels")
    for kind, kept in (("audio", labels >= 60), ("text", labels < 60)):
        output = reference(**batch, labels=labels.where(kept, -100), use_cache=False)
        losses = [output.main_loss, *output.mtp_losses]
        for depth, loss in enumerate(losses):
            assert entry[f"{depth_name(depth)}_{kind}_loss"] == pytest.approx(loss.item(), rel=1e-5)
    lengths = [len(pack["input_ids"]) for pack in packs]
    assert entry["pack_fill"] == pytest.approx(sum(lengths) / (8 * max(lengths)))


def test_modules_that_copy_the_backbone_agree_with_it(train_on):
    """With a head of zeros all depths predict token 0, which is hardly ever right."""
    model = make_model(NUM_MODULES)
    model.lm_head.weight.data.zero_()
    entry = train_on(model)
    assert (entry["mtp_0_agreement"], entry["mtp_1_agreement"]) == (1.0, 1.0)
    assert entry["mtp_0_accuracy"] < 0.1


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.1])
def test_log_has_the_gradient_norm_of_every_part(train_on, packs, max_grad_norm):
    model = make_model(NUM_MODULES)
    reference = copy.deepcopy(model).train()
    batch = COLLATOR(list(packs))
    num_items = (batch["labels"][:, 1:] != -100).sum()  # as transformers' Trainer counts
    reference(**batch, num_items_in_batch=num_items, use_cache=False).loss.backward()
    entry = train_on(model, max_grad_norm=max_grad_norm)
    squares = {"backbone": 0.0, "head": 0.0, "mtp": 0.0}
    for name, parameter in reference.named_parameters():
        is_head = name in ("lm_head.weight", "model.embed_tokens.weight")
        squares["mtp" if is_mtp(name) else "head" if is_head else "backbone"] += parameter.grad.square().sum().item()
    for part, square in squares.items():
        assert entry[f"grad_norm_{part}"] == pytest.approx(square**0.5, rel=1e-4), part
    assert entry["grad_norm"] == pytest.approx(sum(squares.values()) ** 0.5, rel=1e-4)
    assert "grad_norm_audio" not in entry


def test_packs_grow_with_the_curriculum(make_trainer):
    curriculum = LengthCurriculum(start=8, end=26, ratio=0.5)
    assert [curriculum.length(step, 10) for step in range(8)] == [8, 8, 8, 16, 16, 26, 26, 26]
    trainer = make_trainer(make_model(1), max_steps=10, curriculum=curriculum)
    trainer.train()
    entries = training_entries(trainer.state.log_history)
    assert [entry["num_tokens"] for entry in entries[:5]] == [16, 16, 16, 32, 32]
    assert all(entry["num_tokens"] > 40 for entry in entries[5:])


def test_a_cut_batch_still_names_its_samples():
    pack = {"input_ids": list(range(20)), "labels": list(range(20)), "position_ids": list(range(20))}
    batch = PackCollator(pad_id=100, files=["a.jsonl"])([{**pack, "sources": [0], "lines": [7]}])
    cut = LengthCurriculum(start=8, end=26, ratio=0.5).cut(batch, step=0, max_steps=10)
    assert cut.pop("samples") == ["a.jsonl:7"]
    assert {name: values.shape for name, values in cut.items()} == dict.fromkeys(cut, (1, 8)) and len(cut) == 3


def test_a_curriculum_for_continuous_input_is_refused(make_trainer):
    curriculum = LengthCurriculum(start=8, end=26, ratio=0.5)
    with pytest.raises(ValueError, match="--curriculum_length needs audio input as codes"):
        make_trainer(
            make_model(1), curriculum=curriculum, front_end=SenseVoiceFrontEnd(torch.zeros(560), torch.ones(560))
        )


def test_the_loss_of_a_cut_batch_is_divided_by_what_is_left(make_trainer, packs):
    model = make_model(1)
    reference = copy.deepcopy(model)
    trainer = make_trainer(
        model, per_device_train_batch_size=8, max_steps=2, curriculum=LengthCurriculum(start=10, end=26, ratio=1.0)
    )
    trainer.train()
    batch = {name: values[:, :10] for name, values in COLLATOR(list(packs)).items()}
    expected = reference(**batch, use_cache=False)
    entry = training_entries(trainer.state.log_history)[0]
    assert entry["main_loss"] == pytest.approx(expected.main_loss.item(), rel=1e-5)


def test_the_time_that_remains_follows_from_the_last_steps(make_trainer):
    trainer = make_trainer(make_model(1), max_steps=6, logging_steps=2)
    trainer.train()
    entries = training_entries(trainer.state.log_history)
    gaps = [entries[0]["minutes"], *(b["minutes"] - a["minutes"] for a, b in itertools.pairwise(entries))]
    remaining = [gap / 2 * steps for gap, steps in zip(gaps, (4, 2, 0), strict=True)]
    assert [entry["eta_minutes"] for entry in entries] == pytest.approx(remaining)


def test_tensorboard_receives_the_log_if_it_is_installed(make_trainer, tmp_path):
    pytest.importorskip("tensorboard")
    make_trainer(make_model(1)).train()
    assert list(tmp_path.glob("runs/*/events.out.tfevents.*"))


def test_a_backbone_that_trains_is_scored_in_every_step(make_trainer):
    trainer = make_trainer(make_model(NUM_MODULES), max_steps=3)
    trainer.train()
    assert all("main_loss" in entry for entry in training_entries(trainer.state.log_history))


def test_a_summary_has_the_last_known_loss_of_the_backbone():
    values = {"loss": 1.0, "num_tokens": 8, "minutes": 1.0, "mtp_0_loss": 2.0, "mtp_0_accuracy": 0.5}
    entries = [values | {"step": 1, "main_loss": 3.0, "main_accuracy": 0.25}, values | {"step": 2}]
    assert summarise(entries)["final_losses"] == {"main": 3.0, "mtp_0": 2.0}
    assert summarise(entries)["final_accuracies"] == {"main": 0.25, "mtp_0": 0.5}


def test_one_process_with_several_gpus_is_refused(make_trainer, monkeypatch):
    """The Trainer would copy the model to each and split packed batches without regard to documents."""
    monkeypatch.setattr(SpeechTrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="one process for each GPU, got one for 2; start it with torchrun"):
        make_trainer(make_model(1))


def test_the_last_step_is_logged(make_trainer):
    trainer = make_trainer(make_model(0), max_steps=3, logging_steps=2)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [2, 3]


def test_accumulated_batches_equal_one_large_batch(make_trainer):
    models = [make_model(NUM_MODULES) for _ in range(2)]
    make_trainer(models[0], per_device_train_batch_size=8).train()
    make_trainer(models[1], per_device_train_batch_size=2, gradient_accumulation_steps=4).train()
    for name, value in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], value, atol=2e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")  # its new name came later than our bound
def test_gradient_checkpointing_changes_nothing(make_trainer):
    losses = []
    for checkpointing in (False, True):
        model = make_model(NUM_MODULES)
        set_trainable(model, mtp_parameter_patterns(model.config))
        trainer = make_trainer(model, max_steps=3, gradient_checkpointing=checkpointing)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][0] != losses[0][-1]
