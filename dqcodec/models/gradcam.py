"""GradCAM++ attention of a classifier, averaged over patches (DQ Eq. 28, 29)."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqcodec.errors import OptionError
from dqcodec.models.proxy import Proxy, normalise, to_tensor

Array = npt.NDArray[Any]


class Classifier(Protocol):
    """A network in two parts: images -> last feature map -> logits."""

    def maps(self, x: Tensor) -> Tensor: ...

    def classify(self, maps: Tensor) -> Tensor: ...


class TimmCnn:
    """A timm network whose features are a map: CNNs, and Swin with its kin, whose maps have the channels last."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"

    def maps(self, x: Tensor) -> Tensor:
        """The last feature map, (N, K, h, w); OptionError where the model's features are not a map."""
        out = self.model.forward_features(x)
        channels = 3 if self.channels_last else 1
        if not isinstance(out, Tensor) or out.ndim != 4 or out.shape[channels] != self.model.num_features:
            raise _unsupported(self.model)
        return out.permute(0, 3, 1, 2) if self.channels_last else out

    def classify(self, maps: Tensor) -> Tensor:
        """Logits from the last feature map."""
        out: Tensor = self.model.forward_head(maps.permute(0, 2, 3, 1) if self.channels_last else maps)
        return out


class TimmVit:
    """A timm VisionTransformer; the map is the output of norm1 in the last block, where its attention reads it.

    After that attention nothing flows from the patch tokens to the class token: where the class token is what is
    pooled, they have no gradient behind the last block.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def maps(self, x: Tensor) -> Tensor:
        """The patch tokens as a map, (N, width, h, w); the rest that `classify` needs is kept in the object."""
        model = self.model
        tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
        self.residual = model.blocks[:-1](tokens)
        normed = model.blocks[-1].norm1(self.residual)
        self.prefix, patches = normed.tensor_split([model.num_prefix_tokens], 1)
        height, width = model.patch_embed.dynamic_feat_size(x.shape[2:])
        out: Tensor = patches.transpose(1, 2).unflatten(2, (height, width))
        return out

    def classify(self, maps: Tensor) -> Tensor:
        """Logits of the images that `maps` had last, with these maps."""
        block = self.model.blocks[-1]
        normed = torch.cat([self.prefix, maps.flatten(2).transpose(1, 2)], 1)
        tokens = self.residual + block.ls1(block.attn(normed))  # drop_path does nothing in evaluation mode
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
        out: Tensor = self.model.forward_head(self.model.norm(tokens))
        return out


def timm_classifier(model: nn.Module) -> Classifier:
    """A timm model in two parts, for `gradcam_pp`.

    model    from timm.create_model, with a head (num_classes > 0) and in evaluation mode
    raises   OptionError for any other; where the features turn out not to be a map, when the first images pass
    """
    from timm.models.vision_transformer import Block, VisionTransformer

    parts = hasattr(model, "forward_features") and hasattr(model, "forward_head")
    if not parts or not getattr(model, "num_classes", 0):
        raise _unsupported(model)
    if model.training:
        raise OptionError("model: in training mode, where a score depends on the batch and on chance; call eval()")
    if not isinstance(model, VisionTransformer):
        return TimmCnn(model)
    if type(model.blocks[-1]) is not Block:  # others have no norm1 ahead of their attention
        raise _unsupported(model)
    return TimmVit(model)


def _unsupported(model: nn.Module) -> OptionError:
    return OptionError(
        f"model: no GradCAM++ for {type(model).__name__}; supported: timm models with a classification head whose "
        "features are a map (CNNs, Swin), or VisionTransformer with blocks of type Block (ViT, DeiT)"
    )


def gradcam_pp(model: Classifier, x: Tensor, labels: Tensor) -> Tensor:
    """Attention maps, float (N, h, w), >= 0, at the resolution of the last feature map.

    With A the feature map, y the logit of the label and g = dy/dA, the derivatives of exp(y) in Eq. 28 become powers
    of g (Chattopadhay et al., Eq. 19):

        alpha = g^2 / (2 g^2 + sum_mn A_mn g^3)        w = sum_ij alpha relu(g)        map = relu(sum_k w_k A_k)

    Where the denominator is 0, alpha is 0. Maps with negative values (transformers, ConvNeXt) can bring it close to 0
    or below; the equation is followed there too.
    """
    with torch.no_grad():
        maps = model.maps(x)
    maps = maps.detach().requires_grad_()
    with torch.enable_grad():
        score = model.classify(maps).gather(1, labels[:, None]).sum()
        (g,) = torch.autograd.grad(score, maps)
    maps = maps.detach()
    below = 2 * g**2 + maps.sum((2, 3), keepdim=True) * g**3
    alpha = torch.where(below != 0, g**2 / torch.where(below != 0, below, 1.0), 0.0)
    weights = (alpha * F.relu(g)).sum((2, 3), keepdim=True)
    return F.relu((weights * maps).sum(1))


def patch_means(attention: Tensor, size: int, patch: int) -> Tensor:
    """Eq. 29: attention scaled up to size x size pixels (bilinear) and averaged over each patch; float (N, P)."""
    full = F.interpolate(attention[:, None], (size, size), mode="bilinear", align_corners=False)
    return F.avg_pool2d(full, patch).flatten(1)


def patch_scores(model: Proxy, images: Array, labels: Array, size: int, patch: int) -> Array:
    """Scores of the patches of `size` x `size` images, float32 (N, P), finite.

    images   uint8 (N, s, s, C), as the proxy sees them
    labels   int (N,)
    """
    device = model.head.weight.device
    attention = gradcam_pp(model, normalise(to_tensor(images, device)), torch.from_numpy(labels).to(device))
    scores: Array = patch_means(attention, size, patch).cpu().numpy()
    return np.nan_to_num(scores)
