import pytest
from PIL import Image

from vita_audio.training.curves import depth_names, draw_run, summarise

HISTORY = [
    {
        "loss": 4.0 - step,
        "learning_rate": 0.1 * step,
        "mtp_learning_rate": step,
        "num_tokens": 600,
        "minutes": 0.5 * step,
        "step": step,
        **{f"{name}_loss": 3.0 - step for name in ("main", "mtp_0", "mtp_1")},
        **{f"{name}_accuracy": 0.25 * step for name in ("main", "mtp_0", "mtp_1")},
    }
    for step in (1, 2)
] + [{"train_loss": 3.0, "step": 2}]


def test_summary_takes_tokens_of_all_entries_and_values_of_the_last():
    assert summarise(HISTORY) == {
        "steps": 2,
        "minutes": 1.0,
        "num_tokens": 1200,
        "tokens_per_second": 20.0,
        "final_loss": 2.0,
        "final_losses": {"main": 1.0, "mtp_0": 1.0, "mtp_1": 1.0},
        "final_accuracies": {"main": 0.5, "mtp_0": 0.5, "mtp_1": 0.5},
    }


def test_depths_are_listed_in_order():
    entry = {f"{name}_loss": 0.0 for name in ("mtp_1", "mtp_0", "main")}
    assert depth_names([entry]) == ["main", "mtp_0", "mtp_1"]


def test_curves_are_drawn_and_depend_on_the_values(tmp_path):
    draw_run(tmp_path, HISTORY)
    first = Image.open(tmp_path / "curves.png").convert("RGB")
    draw_run(tmp_path, [{**entry, "mtp_1_accuracy": 0.9} for entry in HISTORY])
    second = Image.open(tmp_path / "curves.png").convert("RGB")
    assert first.size == second.size and first.size[0] > 1000
    assert first.tobytes() != second.tobytes()


def test_a_log_without_losses_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no training losses"):
        draw_run(tmp_path, [{"train_loss": 3.0, "step": 2}])
