"""The proxy for inference, whose normalisations are parts of its convolutions, against the one that was trained."""

import numpy as np
import pytest
import torch

from dqcodec.models import proxy


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 16), (3, 64)])
def test_inference_is_that_of_the_trained_network(channels, size, monkeypatch):
    monkeypatch.setattr(proxy, "MIN_STEPS", 8)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (96, size, size, channels), np.uint8), rng.integers(0, 3, 96)
    weights = proxy.train(images, labels, 3, torch.device("cpu"), 0)
    trained = proxy.Proxy(*weights["shape"].tolist())
    trained.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items() if name != "shape"})
    trained.eval()
    restored = proxy.restore(weights, torch.device("cpu"))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in restored.modules())
    x = proxy.normalise(proxy.to_tensor(images, torch.device("cpu")))
    with torch.no_grad():
        torch.testing.assert_close(restored(x), trained(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(restored.pools(x), trained.pools(x), rtol=1e-4, atol=1e-4)
