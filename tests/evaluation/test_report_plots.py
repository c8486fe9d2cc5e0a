"""The values that plots of reports take from logs."""

from evaluation.reporting.plots import module_losses


def test_the_loss_of_a_module_counts_once():
    entry = {"loss": 9.0, "main_loss": 8.0, "mtp_0_loss": 1.0, "mtp_10_loss": 2.0}
    parts = {"mtp_0_text_loss": 3.0, "mtp_0_audio_loss": 4.0, "mtp_0_accuracy": 0.5}
    assert module_losses(entry | parts) == [1.0, 2.0]
