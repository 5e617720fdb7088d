import numpy as np
import torch

from dqcodec.models.mae import MAE, MAEConfig
from dqcodec.models.training import Batch, Muon, fit, loss_of, orthogonal
from dqcodec.patches import split

SMALL = MAEConfig(16, 4, 3, 32, 1, 2, 32, 1, 2, smooth=2)


def stripes(seed):
    """Waves of one length and random phase; half of the patches dropped."""
    rng = np.random.default_rng(seed)
    wave = 128 + 80 * np.sin(np.arange(16)[None] * 1.3 + rng.uniform(0, 6, (32, 1)))
    images = torch.from_numpy(np.repeat(wave[:, None, None], 16, 2).repeat(3, 1)).float()
    mask = torch.from_numpy(np.stack([rng.permutation(16) < 8 for _ in range(32)]))
    return Batch(split(images, 4), split(images, 4), mask, (4, 4))


def test_it_learns_what_interpolation_cannot_know():
    torch.manual_seed(0)
    model = MAE(SMALL)
    held_out = stripes(10_000)
    with torch.no_grad():
        before = loss_of(model, held_out).item()
    losses = list(fit(model, (stripes(seed) for seed in range(1000)), 150))
    assert len(losses) == 150
    with torch.no_grad():
        assert loss_of(model, held_out).item() < 0.5 * before
    assert not model.training


def test_the_same_seed_gives_the_same_weights():
    made = []
    for _ in range(2):
        torch.manual_seed(1)
        model = MAE(SMALL)
        assert all(np.isfinite(list(fit(model, (stripes(seed) for seed in range(5)), 5, share=0.3))))
        made.append(model.state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_updates_are_orthogonal():
    torch.manual_seed(0)
    for shape in ((3, 8, 20), (2, 20, 8), (1, 8, 8)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_muon_goes_down():
    """Least squares: from far away to near the solution, as near as steps of one size come."""
    torch.manual_seed(0)
    x, wanted = torch.randn(100, 6), torch.randn(4, 6)
    weight = torch.nn.Parameter(torch.zeros(4, 6))
    optimizer = Muon([weight], 0.02, decay=0)
    for _ in range(400):
        loss = ((x @ weight.T - x @ wanted.T) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02
