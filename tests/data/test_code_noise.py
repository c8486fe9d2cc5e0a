import torch

from vita_audio.data.code_noise import CodeNoise


def test_noise_changes_only_codes_and_only_to_codes():
    ids, codes = torch.arange(50).repeat(4, 1), range(5, 30)
    torch.manual_seed(0)
    noisy = CodeNoise(0.5, codes)(ids)
    is_code, changed = (ids >= 5) & (ids < 30), noisy != ids
    assert not changed[~is_code].any() and 0.3 < changed[is_code].float().mean() < 0.6
    assert set(noisy[changed].tolist()) <= set(codes)
