"""Training the small masked autoencoders, by `tools/train_mae.py` and by `--mae train`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dqcodec.models.mae import MAE, by_pixel, places, prepare, take
from dqcodec.smooth import smooth

MATRIX_RATE, RATE, WARM_UP = 0.02, 2e-3, 100  # of Muon, of AdamW; steps until both are reached
_QUINTIC = (3.4445, -4.7750, 2.0315)  # of the iteration that makes singular values about one


@dataclass(frozen=True)
class Batch:
    """
    seen    float (N, P, C, p, p), 0..255: images as a file gives them; what dropped patches hold does not matter
    target  the same images as they were
    mask    bool (N, P), true = kept, equally many in every row
    grid    rows and columns of patches
    """

    seen: Tensor
    target: Tensor
    mask: Tensor
    grid: tuple[int, int]


def loss_of(model: MAE, batch: Batch) -> Tensor:
    """Mean squared error over the dropped patches, each image in units of its own deviation."""
    x, centre, spread = prepare(smooth(batch.seen, batch.mask, batch.grid, model.config.smooth))
    wanted = take((batch.target - centre) / spread, places(~batch.mask))
    out: Tensor = ((model.predict(x, batch.mask, batch.grid) - by_pixel(wanted)) ** 2).mean()
    return out


def fit(model: MAE, batches: Iterable[Batch], steps: int, share: float = 1.0) -> Iterator[float]:
    """Train for at most `steps` steps, one a batch; yields the loss of each.

    share  of the usual learning rates; less for a model that knows something already
    """
    matrices = [p for name, p in model.named_parameters() if "blocks" in name and p.ndim == 2]
    others = [p for p in model.parameters() if p.requires_grad and not any(p is m for m in matrices)]
    optimizers = (
        Muon(matrices, MATRIX_RATE * share),
        torch.optim.AdamW(others, RATE * share, betas=(0.9, 0.95), weight_decay=0.05),
    )
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, _schedule(steps)) for optimizer in optimizers]
    model.train()
    for step, batch in enumerate(batches):
        if step == steps:
            break
        loss = loss_of(model, batch)
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        yield loss.item()
    model.eval()


def _schedule(steps: int) -> Callable[[int], float]:
    """The learning rate's factor: a linear start, then half a cosine."""
    start = min(WARM_UP, steps // 4 + 1)
    return lambda step: min(1.0, (step + 1) / start) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps)))


class Muon(torch.optim.Optimizer):
    """Momentum whose update of a matrix has singular values of about one (Jordan et al. 2024, "Muon").

    Twice as far as AdamW in as many steps here. torch.optim.Muon computes in bfloat16, which a CPU does slowly; this
    one takes matrices of one shape together, in float32.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.05) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                updates = []
                for parameter in parameters:
                    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                    mean.lerp_(gradient, 1 - group["momentum"])
                    updates.append(gradient.lerp(mean, group["momentum"]))
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(parameters, orthogonal(torch.stack(updates)), strict=True):
                    parameter.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-scale)


def orthogonal(x: Tensor) -> Tensor:
    """Matrices (k, m, n) with the same singular vectors and singular values of 0.7 to 1.2, by a polynomial."""
    if x.shape[1] > x.shape[2]:
        return orthogonal(x.mT).mT
    a, b, c = _QUINTIC
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x
