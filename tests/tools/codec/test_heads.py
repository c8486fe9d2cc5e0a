import torch
import torch.nn.functional as F

from tools.codec.heads import CodeReader, ctc_loss, greedy_symbols


def test_ctc_loss_is_torch_ctc_per_symbol():
    logits = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([12, 9])
    symbols = [[1, 2, 2], [4, 3]]
    expected = sum(
        F.ctc_loss(row[:n].log_softmax(-1), torch.tensor(ids), [int(n)], [len(ids)], reduction="sum")
        for row, n, ids in zip(logits, lengths, symbols, strict=True)
    )
    torch.testing.assert_close(ctc_loss(logits, lengths, symbols), expected / 5)


def test_ctc_target_longer_than_its_frames_counts_as_zero():
    logits = torch.randn(1, 3, 5)
    assert ctc_loss(logits, torch.tensor([3]), [[1, 2, 3, 4]]).item() == 0


def test_greedy_symbols_drop_repeats_blanks_and_padding():
    path = [0, 1, 1, 0, 1, 2, 2, 3]
    logits = F.one_hot(torch.tensor([path]), 4).float()
    assert greedy_symbols(logits, torch.tensor([7])) == [[1, 1, 2]]


def test_reader_ignores_what_padded_codewords_hold():
    torch.manual_seed(0)
    reader = CodeReader(code_width=8, num_symbols=5, width=16).eval()
    codewords = torch.randn(1, 6, 8)
    mask = torch.tensor([[True] * 4 + [False] * 2])
    changed = codewords.clone()
    changed[:, 4:] = 100.0
    torch.testing.assert_close(reader(codewords, mask), reader(changed, mask))
    assert reader(codewords, mask).shape == (1, 24, 16)
    assert reader.read_mel(reader(codewords, mask), 41).shape == (1, 41, 80)
