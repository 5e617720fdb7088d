import numpy as np
import pytest
import torch
from torch import nn

from dqcodec.errors import OptionError
from dqcodec.models.gradcam import gradcam_pp, patch_means, patch_scores, timm_classifier
from dqcodec.models.proxy import Proxy, restore, train


class Small(nn.Module):
    """A network whose last map is small enough to differentiate cell by cell."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.head = nn.Linear(4, 3)

    def maps(self, x):
        return torch.relu(self.conv(x))

    def classify(self, maps):
        return self.head(maps.mean((2, 3)))


def by_derivatives(model, x, label):
    """Eq. 28 with the second and third derivatives of exp(y) taken by automatic differentiation, cell by cell."""
    maps = model.maps(x[None]).detach().double().requires_grad_()
    y = model.double().classify(maps)[0, label]
    (g,) = torch.autograd.grad(y, maps, create_graph=True)
    score = y.exp()
    (first,) = torch.autograd.grad(score, maps, create_graph=True)
    second, third = torch.zeros_like(maps), torch.zeros_like(maps)
    for place in np.ndindex(*maps.shape):
        (gradient,) = torch.autograd.grad(first[place], maps, create_graph=True)
        second[place] = gradient[place].detach()
        (gradient,) = torch.autograd.grad(gradient[place], maps, retain_graph=True)
        third[place] = gradient[place].detach()
    below = 2 * second + maps.sum((2, 3), keepdim=True) * third
    alpha = torch.where(below != 0, second / below, 0.0)
    weights = (alpha * torch.relu(g)).sum((2, 3), keepdim=True)
    return torch.relu((weights * maps).sum(1))[0].detach()


def test_against_the_derivatives_of_equation_28():
    model = Small()
    x = torch.randn(5, 3, 6, 6)
    labels = torch.tensor([0, 1, 2, 0, 1])
    found = gradcam_pp(model, x, labels)
    for row in range(5):
        expected = by_derivatives(Small(), x[row], int(labels[row]))
        torch.testing.assert_close(found[row].double(), expected, rtol=1e-4, atol=1e-6)
    assert found.max() > 0


def test_attention_does_not_depend_on_the_batch():
    model = Small()
    x, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 2])
    whole = gradcam_pp(model, x, labels)
    for row in range(4):
        one = gradcam_pp(model, x[row : row + 1], labels[row : row + 1])
        torch.testing.assert_close(whole[row : row + 1], one)


def test_no_gradient_gives_zeros_not_nan():
    model = Small()
    nn.init.zeros_(model.head.weight)
    assert (gradcam_pp(model, torch.randn(2, 3, 8, 8), torch.tensor([0, 1])) == 0).all()


SWIN = {"img_size": (32, 48), "window_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2)}
VIT = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
# name, arguments, height and width of the images, the layer whose output is the map
CNNS = [
    ("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}, (64, 96), "layer4"),
    ("test_efficientnet", {}, (64, 96), "bn2"),
    ("test_convnext", {}, (64, 96), "stages"),
    ("swin_tiny_patch4_window7_224", SWIN, (32, 48), "norm"),
]
VITS = [
    ("vit_tiny_patch16_224", VIT, (32, 48), "blocks.1.norm1"),
    ("vit_tiny_patch16_224", VIT | {"reg_tokens": 2, "init_values": 0.1}, (32, 48), "blocks.1.norm1"),
    ("vit_base_patch16_gap_224", VIT, (32, 48), "blocks.1.norm1"),
    ("deit_tiny_distilled_patch16_224", VIT, (32, 48), "blocks.1.norm1"),
]


def timm_model(name, arguments):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, **{"num_classes": 3} | arguments).eval()


def by_grad_cam(model, layer, x, labels):
    """The map of the package grad-cam, before it is scaled to 0..1 and to the size of the image."""
    pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam import GradCAMPlusPlus
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def to_maps(values):
        if values.ndim == 3:
            values = values[:, model.num_prefix_tokens :].unflatten(1, (4, 6))
        return values if values.shape[1] == model.num_features else values.permute(0, 3, 1, 2)

    targets = [ClassifierOutputTarget(label) for label in labels.tolist()]
    layer = model.get_submodule(layer)
    with GradCAMPlusPlus(model, [layer], to_maps) as cam:
        cam(x, targets)
        maps, g = cam.activations_and_grads.activations[0].numpy(), cam.activations_and_grads.gradients[0].numpy()
        # It adds 1e-6 to the denominator 2 g^2 + ...; this package does not. A transformer's g^2 is far below that, so
        # that the maps as they come differ. A / c and c g have the same map by the equation, and c^2 g^2 >> 1e-6.
        return np.maximum(cam.get_cam_image(x, layer, targets, maps / 1e9, g * 1e9), 0)


@pytest.mark.parametrize(("name", "arguments", "size", "layer"), CNNS + VITS)
def test_timm_models_against_the_package_grad_cam(name, arguments, size, layer):
    model = timm_model(name, arguments).double()
    x, labels = torch.randn(3, 3, *size, dtype=torch.float64), torch.tensor([0, 2, 1])
    found = gradcam_pp(timm_classifier(model), x, labels).numpy()
    expected = by_grad_cam(model, layer, x, labels)
    assert (found.max((1, 2)) > 0).all()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * found.max())


@pytest.mark.parametrize(("name", "arguments", "size", "layer"), CNNS + VITS)
def test_the_two_parts_of_a_timm_model_make_the_whole(name, arguments, size, layer):
    model = timm_model(name, arguments)
    x = torch.randn(2, 3, *size)
    parts = timm_classifier(model)
    with torch.no_grad():
        torch.testing.assert_close(parts.classify(parts.maps(x)), model(x))


def test_a_batch_of_a_transformer_is_one_pass_and_gives_the_same_as_its_images():
    network = timm_model("vit_tiny_patch16_224", VIT).double()
    calls = []
    for block in network.blocks:
        block.attn.register_forward_hook(lambda *_: calls.append(1))
    model = timm_classifier(network)
    x, labels = torch.randn(4, 3, 32, 48, dtype=torch.float64), torch.tensor([0, 1, 2, 2])
    whole = gradcam_pp(model, x, labels)
    assert len(calls) == len(network.blocks)
    for row in range(4):
        torch.testing.assert_close(whole[row : row + 1], gradcam_pp(model, x[row : row + 1], labels[row : row + 1]))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test_resnet", {"num_classes": 0}),  # no head
        ("beit_base_patch16_224", VIT | {"img_size": 32}),  # tokens, but of another class
        ("vit_small_patch16_18x2_224", VIT | {"img_size": 32}),  # several attentions side by side in a block
    ],
)
def test_other_timm_models_are_refused(name, arguments):
    with pytest.raises(OptionError, match="supported: timm models with a classification head"):
        gradcam_pp(timm_classifier(timm_model(name, arguments)), torch.randn(1, 3, 32, 32), torch.tensor([0]))


def test_other_networks_and_training_mode_are_refused():
    with pytest.raises(OptionError, match="no GradCAM\\+\\+ for Linear; supported"):
        timm_classifier(nn.Linear(2, 2))
    with pytest.raises(OptionError, match="training mode"):
        timm_classifier(timm_model("vit_tiny_patch16_224", VIT).train())


def test_scores_are_means_over_patches():
    attention = torch.arange(16.0).reshape(1, 4, 4)
    np.testing.assert_allclose(patch_means(attention, 4, 2), [[2.5, 4.5, 10.5, 12.5]])
    assert patch_means(attention, 32, 4).shape == (1, 64)


def test_the_proxy_learns_and_looks_at_the_object():
    """A bright square on noise, left or right by class: the classes are learnt, and the square scores highest."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (120, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(120) % 2
    for k in range(120):
        x = 4 if labels[k] == 0 else 20
        images[k, 12:20, x : x + 8, labels[k]] = 255
    model = restore(train(images, labels, 2, torch.device("cpu"), 0), torch.device("cpu"))
    x = ((torch.from_numpy(images).float() - 128) / 64).permute(0, 3, 1, 2)
    with torch.inference_mode():
        accuracy = (model(x).argmax(1).numpy() == labels).mean()
    assert accuracy > 0.9
    scores = patch_scores(model, images, labels, 32, 8).reshape(120, 4, 4)
    inside = np.where(labels == 0, scores[:, 1:3, 0:2].mean((1, 2)), scores[:, 1:3, 2:4].mean((1, 2)))
    assert (inside > scores.mean((1, 2))).mean() > 0.8


def test_same_seed_same_proxy():
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    first, again = (train(images, np.arange(8) % 2, 2, torch.device("cpu"), 3) for _ in range(2))
    assert isinstance(restore(first, torch.device("cpu")), Proxy)
    assert first.keys() == again.keys()
    assert all((first[name] == again[name]).all() for name in first)


def test_pools_end_with_the_features():
    """What the discriminator sees: the averages of every block's maps, the last of which are the bins' features."""
    weights = train(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) % 2, 2, torch.device("cpu"), 0)
    model = restore(weights, torch.device("cpu"))
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        assert model.pools(x).shape == (5, 168)
        torch.testing.assert_close(model.pools(x)[:, -96:], model.maps(x).mean((2, 3)))
