"""Whatever is in an image file: the right pixels, or a reason."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dqcodec.errors import SourceError
from dqcodec.sources import images
from dqcodec.sources.images import default_patch, default_size, probe, read, thumbnail

RGB = (np.indices((20, 30)).sum(0)[..., None] * [3, 4, 5] % 256).astype(np.uint8)
GREY = RGB[..., 0]


def stored(image, kind="PNG", **arguments):
    buffer = io.BytesIO()
    image.save(buffer, kind, **arguments)
    return buffer.getvalue()


def look(data):
    return probe(lambda: io.BytesIO(data), "a.png")


def pixels(data, size=0, resize="squash", channels=3):
    found = look(data)
    size = size or min(found.width, found.height)
    return read(lambda: io.BytesIO(data), "a.png", size, resize, channels)


SQUARE = RGB[:, :20]


def test_rgb_is_untouched():
    np.testing.assert_array_equal(pixels(stored(Image.fromarray(SQUARE))), SQUARE)
    np.testing.assert_array_equal(pixels(stored(Image.fromarray(SQUARE), "WEBP", lossless=True)), SQUARE)
    np.testing.assert_array_equal(pixels(stored(Image.fromarray(SQUARE), "BMP")), SQUARE)


def test_grey():
    data = stored(Image.fromarray(GREY[:, :20]))
    assert look(data).channels == 1
    np.testing.assert_array_equal(pixels(data, channels=1)[..., 0], GREY[:, :20])
    np.testing.assert_array_equal(pixels(data), np.repeat(GREY[:, :20, None], 3, 2))


def test_one_bit():
    image = Image.fromarray(GREY[:, :20] > 90)
    assert look(stored(image)).channels == 1
    assert set(np.unique(pixels(stored(image), channels=1))) == {0, 255}


def test_sixteen_bits_are_scaled_not_cut_off():
    deep = np.linspace(0, 65535, 400).reshape(20, 20).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        data = stored(Image.fromarray(deep), kind)
        assert look(data).channels == 1
        expected = np.rint(deep / 257).astype(np.uint8)
        np.testing.assert_array_equal(pixels(data, channels=1)[..., 0], expected)


def test_integers_beyond_sixteen_bits_and_floats_are_refused():
    wide = Image.fromarray(np.full((8, 8), 100_000, np.int32))
    with pytest.raises(SourceError, match=r"a\.png: integer values from 100000 to 100000; allowed: 0 to 65535"):
        pixels(stored(wide, "TIFF"))
    with pytest.raises(SourceError, match="floating-point"):
        pixels(stored(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"))


def test_transparency_is_laid_over_white():
    rgba = np.dstack([SQUARE, np.full((20, 20), 255, np.uint8)])
    rgba[:5, :, 3] = 0
    found = pixels(stored(Image.fromarray(rgba)))
    assert (found[:5] == 255).all()
    np.testing.assert_array_equal(found[5:], SQUARE[5:])


def test_palette_with_and_without_transparency():
    image = Image.fromarray(SQUARE).quantize(16)
    np.testing.assert_array_equal(pixels(stored(image)), np.asarray(image.convert("RGB")))
    clear = stored(image, transparency=int(np.asarray(image)[0, 0]))
    assert pixels(clear)[0, 0].tolist() == [255, 255, 255]
    assert look(clear).channels == 3


def test_grey_with_alpha_stays_grey():
    la = np.dstack([GREY[:, :20], np.full((20, 20), 255, np.uint8)])
    data = stored(Image.fromarray(la, "LA"))
    assert look(data).channels == 1
    np.testing.assert_array_equal(pixels(data, channels=1)[..., 0], GREY[:, :20])


def test_cmyk():
    image = Image.fromarray(SQUARE).convert("CMYK")
    np.testing.assert_array_equal(pixels(stored(image, "TIFF")), np.asarray(image.convert("RGB")))
    assert look(stored(image, "JPEG")).channels == 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation):
    """Stored turned, marked so: the pixels come back upright, and the header's size too."""
    upright = Image.fromarray(RGB)
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that make each orientation
    stored_as = upright if orientation == 1 else upright.transpose(Image.Transpose(turned[orientation]))
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    data = stored(stored_as, "PNG", exif=exif)
    found = look(data)
    assert (found.width, found.height) == (30, 20)
    np.testing.assert_array_equal(
        read(lambda: io.BytesIO(data), "a", 20, "crop", 3), pixels(stored(upright), 20, "crop")
    )


def test_broken_exif_does_not_lose_the_image():
    data = stored(Image.fromarray(SQUARE), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40, quality=95)
    assert pixels(data).shape == (20, 20, 3)


@pytest.mark.parametrize(("tag", "kind"), [(0x128, 2), (0x11A, 2), (0x100, 2), (0x102, 7), (0x111, 7)])
def test_an_ill_typed_tag_does_not_lose_the_rotation(tag, kind):
    """An EXIF block by hand: orientation 6, and another tag as text or undefined bytes."""
    entries = sorted([(images.ORIENTATION, 3, 1, struct.pack("<HH", 6, 0)), (tag, kind, 4, b"odd\0")])
    block = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + block + bytes(4)
    turned = Image.fromarray(RGB).transpose(Image.Transpose.ROTATE_90)
    data = stored(turned, "JPEG", exif=exif, quality=100, subsampling=0)
    assert (look(data).width, look(data).height) == (30, 20)
    found = read(lambda: io.BytesIO(data), "a", 20, "crop", 3)
    expected = pixels(stored(Image.fromarray(RGB)), 20, "crop")
    assert np.abs(found.astype(int) - expected).max() < 12


def test_first_of_several_frames():
    frames = [Image.fromarray(np.full((8, 8), k, np.uint8)) for k in (10, 200)]
    data = stored(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(data) == 10).all()


def test_squash_crop_and_pad():
    left = np.zeros((10, 30, 3), np.uint8)
    left[:, 20:] = 250
    data = stored(Image.fromarray(left))
    assert (pixels(data, 10, "crop") == 0).all()
    padded = pixels(data, 30, "pad")
    assert (padded[:9] == 128).all()
    assert (padded[21:] == 128).all()
    np.testing.assert_array_equal(padded[10:20], left)
    squashed = pixels(data, 10, "squash")
    assert (squashed[:, 0] < 10).all()
    assert (squashed[:, -1] > 240).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated(kind):
    data = stored(Image.fromarray(RGB), kind)
    whole = pixels(data, 20)
    for share in (0.3, 0.7, 0.95):
        try:
            found = pixels(data[: int(len(data) * share)], 20)
        except SourceError as error:
            assert re.match(r"a\.png: .+", str(error))
        else:  # only what follows the pixels was cut off
            assert (kind, share) == ("PNG", 0.95)
            np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", bytes(1000)])
def test_not_an_image(data):
    with pytest.raises(SourceError, match=r"^a\.png: .+"):
        look(data)


def test_damaged_bytes_are_a_source_error_or_an_image():
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF"):
        data = stored(Image.fromarray(RGB), kind)
        for _ in range(60):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 3):
                damaged[place] = rng.integers(256)
            try:
                assert pixels(bytes(damaged), 20).shape == (20, 20, 3)
            except SourceError as error:
                assert str(error).startswith("a.png: ")


def test_a_decompression_bomb():
    small = stored(Image.fromarray(np.zeros((10, 10), np.uint8)))
    at = small.index(b"IHDR") + 4
    for side in (10_000, 60_000):
        header = struct.pack(">II", side, side) + small[at + 8 : at + 13]
        crc = struct.pack(">I", zlib.crc32(b"IHDR" + header))
        with pytest.raises(SourceError, match="decompression bomb"):
            look(small[:at] + header + crc + small[at + 17 :])


def test_files_that_cannot_be_opened():
    def fail():
        raise SourceError("a.png: Permission denied")

    with pytest.raises(SourceError, match=r"a\.png: Permission denied"):
        probe(fail, "a.png")


def of(*sizes):
    return [images.Probe(w, h, 3) for w, h in sizes]


@pytest.mark.parametrize(
    ("probes", "size", "patch"),
    [
        (of((32, 32), (32, 32)), 32, 4),
        (of((28, 28)), 28, 4),
        (of((64, 64)), 64, 8),
        (of((224, 224)), 224, 16),
        (of((500, 375), (400, 500), (300, 300)), 224, 16),
        (of((100, 100), (90, 120), (130, 95)), 88, 8),
        (of((640, 480)) * 3, 224, 16),
        (of((30, 30)), 30, 5),
        (of((31, 31)), 31, 31),
        (of((1, 1)), 1, 1),
        (of((3, 5), (2, 2)), 2, 2),
        (of((256, 256)), 224, 16),
    ],
)
def test_default_size_and_patch(probes, size, patch):
    assert default_size(probes) == size
    assert default_patch(size) == patch
    assert size % patch == 0


def test_thumbnail():
    image = np.full((64, 64, 3), 7, np.uint8)
    assert thumbnail(image, 64) is image
    assert (thumbnail(image, 16) == 7).all()
    assert thumbnail(image[..., :1], 16).shape == (16, 16, 1)
