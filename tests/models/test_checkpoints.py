"""Weights from files and hubs, in both naming schemes, and what is refused."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from dqcodec.errors import OptionError
from dqcodec.models import checkpoints
from dqcodec.models.mae import MAE, MAEConfig
from dqcodec.patches import split

TINY = MAEConfig(16, 4, 3, 32, 2, 2, 16, 1, 2)


def saved(path, config=TINY, **changes):
    torch.manual_seed(0)
    model = MAE(config)
    about = json.dumps({**asdict(config), **changes})
    save_file(model.state_dict(), path, {"dqcodec.mae": about})
    return path


@pytest.fixture(scope="module", params=[1e-6, 1e-12], ids=["original", "hub"])
def published(tmp_path_factory, request):
    """A ViTMAEForPreTraining of Hugging Face with random weights and its folder, with the eps of either code."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        image_size=32, patch_size=8, hidden_size=128, num_hidden_layers=3, num_attention_heads=2, intermediate_size=512,
        decoder_hidden_size=64, decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
        decoder_intermediate_size=256, mask_ratio=0.5, layer_norm_eps=request.param,
    )  # fmt: skip
    torch.manual_seed(3)
    theirs = transformers.ViTMAEForPreTraining(config).eval()
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("hf")
    theirs.save_pretrained(folder)
    return theirs, folder


def test_the_same_output_as_transformers(published, tmp_path):
    """With the same weights and mask, from Hugging Face's files and from a state dict with the original names."""
    theirs, folder = published
    assert (folder / "config.json").is_file()
    mine = checkpoints.load(f"file:{folder / 'model.safetensors'}").model
    state = {"model": {name: value.clone() for name, value in mine.state_dict().items()}}
    torch.save(state, tmp_path / "mae_visualize_vit_tiny.pth")
    original = checkpoints.load(tmp_path / "mae_visualize_vit_tiny.pth").model
    assert original.config == MAEConfig(32, 8, 3, 128, 3, 2, 64, 2, 2, 1e-6)

    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(3, 3, 32, 32, generator=generator), torch.rand(3, 16, generator=generator)
    with torch.no_grad():
        found = theirs(pixel_values=x, noise=noise)
        mask = found.mask == 0
        assert (mask.sum(1) == 8).all()
        for model in (mine, original) if theirs.config.layer_norm_eps == 1e-6 else (mine,):
            torch.testing.assert_close(model(split(x, 8), mask, (4, 4)), found.logits, atol=1e-5, rtol=0)


def test_filling_with_published_weights(published):
    """Pixels are normalised as ImageNet's, and what comes out is brought back."""
    theirs, folder = published
    model = checkpoints.load(folder / "model.safetensors").model
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    noise = torch.rand(2, 16)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None] * 255
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None] * 255
    with torch.no_grad():
        found = theirs(pixel_values=(images - mean) / std, noise=noise)
        pixels = theirs.unpatchify(found.logits) * std + mean
    mask = found.mask == 0
    expected = split(pixels.round().clamp(0, 255), 8)
    filled = split(model.fill(images, mask, 8).float(), 8)
    assert (filled[~mask] - expected[~mask]).abs().max() <= 1
    assert torch.equal(filled[mask], split(images.float(), 8)[mask])
    grey = model.fill(images[:, :1], mask, 8)
    assert grey.shape == (2, 1, 32, 32)


def test_the_names_on_the_hub(published, tmp_path):
    """Published files call the decoder's blocks decoder_layers, which newer versions of transformers save otherwise."""
    _, folder = published
    tensors = load_file(folder / "model.safetensors")
    hub = {name.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers."): v for name, v in tensors.items()}
    save_file(hub, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    first, again = (checkpoints.load(place / "model.safetensors").model.state_dict() for place in (folder, tmp_path))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_bin_file_of_hugging_face(published, tmp_path):
    _, folder = published
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    first, again = (checkpoints.load(path) for path in (folder / "model.safetensors", tmp_path / "pytorch_model.bin"))
    x, mask = torch.randn(1, 16, 3, 8, 8), torch.arange(16)[None] % 2 == 0
    assert torch.equal(first.model(x, mask, (4, 4)), again.model(x, mask, (4, 4)))
    assert first.sha256 != again.sha256
    assert first.name == "file:model.safetensors"


def test_weights_of_a_hub(published, monkeypatch, tmp_path):
    """From a repository as huggingface_hub hands it over; without network the message says what to do."""
    _, folder = published
    import huggingface_hub

    asked = []

    def download(name, file):
        asked.append((name, file))
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = checkpoints.load("hf:facebook/vit-mae-base")
    assert asked == [("facebook/vit-mae-base", "config.json"), ("facebook/vit-mae-base", "model.safetensors")]
    assert found.name == "hf:facebook/vit-mae-base"
    assert found.sha256 == checkpoints.load(folder / "model.safetensors").sha256


@pytest.mark.parametrize("name", ["facebook/vit-mae-large", "no such/name at all", ""])
def test_a_hub_that_cannot_be_reached(name, monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OptionError, match=rf"mae: cannot fetch hf:{name}: .*config\.json here and give file:PATH"):
        checkpoints.load(f"hf:{name}")


def test_patches_that_are_normalised_one_by_one_are_refused(published, tmp_path):
    _, folder = published
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    about = {**json.loads((folder / "config.json").read_text()), "norm_pix_loss": True}
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(OptionError, match="norm_pix_loss"):
        checkpoints.load(tmp_path / "model.safetensors")


def test_bytes_and_back():
    torch.manual_seed(0)
    first = MAE(MAEConfig(16, 4, 3, 32, 1, 2, 16, 1, 2, smooth=2)).half().float().eval()
    data = checkpoints.to_bytes(first)
    again = checkpoints.from_bytes(data, "x")
    assert checkpoints.to_bytes(again.model) == again.data == data
    images, mask = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8), torch.arange(32).reshape(2, 16) % 3 > 0
    assert torch.equal(first.fill(images, mask, 4), again.model.fill(images, mask, 4))
    for cut in (0, 7, 8, 100, len(data) - 1):
        with pytest.raises(OptionError, match="mae: cannot read x"):
            checkpoints.from_bytes(data[:cut], "x")
    assert checkpoints.by_hash("0" * 64) is None


def test_wrong_files(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(OptionError, match=r"cannot read .*m\.safetensors: No such file"):
        checkpoints.load(path)
    for name in ("m.safetensors", "m.pth"):
        (tmp_path / name).write_bytes(b"junk" * 100)
        with pytest.raises(OptionError, match=f"cannot read .*{name}"):
            checkpoints.load(tmp_path / name)
    data = saved(path).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(OptionError, match="cannot read"):
        checkpoints.load(path)
    tensors = load_file(saved(path))
    del tensors["norm.weight"]
    save_file(tensors, path, {"dqcodec.mae": json.dumps(asdict(TINY))})
    with pytest.raises(OptionError, match=r"missing, unknown or of another shape: norm\.weight"):
        checkpoints.load(path)


def test_weights_of_another_architecture(tmp_path):
    import timm

    net = timm.create_model("vit_tiny_patch16_224", pretrained=False, depth=1)
    torch.save(net.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(
        OptionError, match=r"no masked autoencoder with its decoder: decoder_embed\.weight, decoder_pred"
    ):
        checkpoints.load(tmp_path / "vit.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(OptionError, match="holds no state dict|no masked autoencoder"):
        checkpoints.load(tmp_path / "list.pth")


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_pickles_are_not_run(tmp_path, capsys):
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(OptionError, match="cannot read"):
        checkpoints.load(tmp_path / "evil.pth")
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "do not fit"),
        ({"width": 2**40}, "sizes up to 16384"),
        ({"depth": 10**9}, "patches up to 64, 128 blocks"),
        ({"size": 16384, "patch": 4, "width": 16384}, "do not fit"),
        ({"width": 30}, "do not fit"),
        ({"size": 256, "patch": 128}, "patches up to 64"),
        ({"channels": 1}, "is for images of 1 channels; allowed: 3"),
        ({"depth": 0}, "no dqcodec MAE configuration"),
        ({"smooth": True}, "no dqcodec MAE configuration"),
        ({"smooth": -1}, "no dqcodec MAE configuration"),
        ({"smooth": 65}, "64 sweeps"),
        ({"eps": -1.0}, "no dqcodec MAE configuration"),
        ({"smooth": 2}, "do not fit"),
        ({"colour": 1}, "no dqcodec MAE configuration"),
    ],
)
def test_hostile_configurations(tmp_path, changes, message):
    """Refused, and nothing is allocated for them."""
    path = saved(tmp_path / "m.safetensors", **changes)
    with pytest.raises(OptionError, match=message):
        checkpoints.load(path)


def test_weights_that_are_not_finite(tmp_path):
    path = saved(tmp_path / "m.safetensors")
    tensors = load_file(path)
    tensors["norm.weight"][0] = float("nan")
    save_file(tensors, path, {"dqcodec.mae": json.dumps(asdict(TINY))})
    with pytest.raises(OptionError, match="not finite"):
        checkpoints.load(path)
