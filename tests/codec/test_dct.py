"""The transform dct: the compiled decoder equals the reference, and no payload can harm it."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dqcodec.codec.dct
from dqcodec.codec.dct import coder, encoder, filter_compiled, inverse, reference, stream, tables, train
from dqcodec.codec.dct.coder import Format
from dqcodec.codec.dct.contexts import CAP, CLASSES, UNITS, contexts, position_class, scan
from dqcodec.codec.dct.edges import edges
from dqcodec.codec.dct.filter import FILTER, weights
from dqcodec.codec.dct.pack import Encoder, bits_of, dependent, lagrange, scale_index, slots_of
from dqcodec.codec.dct.tables import EFFORTS, OFFSETS, PAIRS, PLACES, SUM_BIN
from dqcodec.codec.dct.transform import STEPS, angles, matrix, rotation_matrices
from dqcodec.errors import FormatError, UnsupportedFeatureError


def picture(height: int, width: int, channels: int, seed: int = 0, noise: float = 8) -> np.ndarray:
    """A smooth picture with an edge and some noise, uint8 (H, W, C)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 9
    base = 128 + 60 * np.sin(y + rng.random() * 6) * np.cos(x) + 50 * (x + y > rng.random() * 8)
    colours = rng.random(channels)[None, None] + 0.5
    return np.clip(base[..., None] * colours + rng.normal(0, noise, (height, width, channels)), 0, 255).astype(np.uint8)


def form(height: int, width: int, channels: int, unit: int, effort: str = "default") -> Format:
    uses = dependent(effort)
    return Format(
        height, width, channels, tables.default(tables.DEFAULT, unit, OFFSETS[uses], uses), weights(FILTER, unit)
    )


def both(shape: Format, payloads, kept, scale, colour):
    """Images of the compiled decoder and of the reference."""
    fast = coder.decode(shape, payloads, kept, scale, colour)
    slow = np.zeros_like(fast)
    rotation = shape.rotations[colour] if colour is not None else np.zeros((len(payloads), 3, 3), np.float32)
    bad = reference.decode(shape, payloads, kept.astype(np.uint8), STEPS[scale], rotation, slow)
    assert bad == -1
    return fast, slow


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(("height", "width", "channels"), [(32, 48, 3), (37, 21, 3), (16, 50, 1), (1, 1, 3), (5, 3, 1)])
def test_decoders_agree_and_come_close_to_the_image(unit, height, width, channels, effort):
    shape = form(height, width, channels, unit, effort)
    kept = np.ones((1, shape.rows * shape.columns), bool)
    image = picture(height, width, channels)
    for bits in (2, 4, 8):
        q = scale_index(bits, effort)
        payload, colour = Encoder(shape, effort).encode(image, kept[0].astype(np.uint8), q)
        colours = np.array([colour]) if channels == 3 else None
        fast, slow = both(shape, [payload], kept, np.array([q]), colours)
        assert np.abs(fast.astype(int) - slow).max() <= 1
        error = np.abs(fast[0].transpose(1, 2, 0).astype(float) - image).mean()
        assert error <= 0.8 * STEPS[q] + 0.5  # under the step of one coefficient


@pytest.mark.parametrize("unit", UNITS)
def test_dropped_units_carry_no_byte_and_stay_black(unit):
    shape = form(48, 64, 3, unit)
    image = picture(48, 64, 3, noise=30)
    q = scale_index(4, "default")
    encoder = Encoder(shape, "default")
    kept = np.random.default_rng(1).random(shape.rows * shape.columns) < 0.5
    kept[0] = True
    payload, colour = encoder.encode(image, kept.astype(np.uint8), q)
    whole, _ = encoder.encode(image, np.ones(len(kept), np.uint8), q)
    assert len(payload) < 0.75 * len(whole)
    hidden = image.copy()
    there = kept.reshape(shape.rows, shape.columns).repeat(unit, 0).repeat(unit, 1)
    hidden[~there] = 7  # what a dropped unit holds decides nothing beside differences at the border of kept ones
    fast, slow = both(shape, [payload], kept[None], np.array([q]), np.array([colour]))
    assert np.array_equal(fast, slow)
    assert (fast[0][:, ~there] == 0).all()
    assert np.abs(fast[0][:, there].astype(int) - image.transpose(2, 0, 1)[:, there]).mean() < 12


def test_one_unit_of_many():
    shape = form(224, 224, 3, 16)
    kept = np.zeros(196, np.uint8)
    kept[100] = 1
    payload, colour = Encoder(shape, "best").encode(picture(224, 224, 3), kept, 80)
    fast, slow = both(shape, [payload], kept[None].astype(bool), np.array([80]), np.array([colour]))
    assert np.array_equal(fast, slow)
    assert len(payload) < 200


@pytest.mark.parametrize("channels", [1, 3])
def test_integers_of_the_compiled_decoder_are_the_references(channels):
    """Noise at the finest step: every escape class; the same coefficients, patterns and end."""
    shape = form(35, 40, channels, 16)
    kept = np.ones(shape.rows * shape.columns, np.uint8)
    image = np.random.default_rng(3).integers(0, 256, (35, 40, channels), np.uint8)
    payload, _ = Encoder(shape, "default").encode(image, kept, 0)
    coefficients, patterns, whole = reference.parse(shape, payload, kept)
    assert whole
    assert np.abs(coefficients).max() > 64 * 2 * 72  # the last class occurs
    assert np.array_equal(compiled_parse(shape, payload, kept)[0], coefficients)
    assert np.array_equal(compiled_parse(shape, payload, kept)[1], patterns)


def compiled_parse(shape: Format, payload: bytes, kept: np.ndarray):
    """As reference.parse, with the compiled functions."""
    edges, coding = shape.edges(), shape.tables.coding
    x, head = inverse.begin(np.frombuffer(payload, np.uint8), 0, len(payload))
    words = np.append(np.frombuffer(payload, "<u2", (len(payload) - head) // 2, head), 0).astype(np.uint16)
    p, end = 0, len(words) - 1
    inverse.forget(edges, 0, edges.width)
    units, patterns = [], []
    lasts = np.zeros(18, np.int32)
    for n, there in enumerate(kept):
        scratch = np.zeros(256 * shape.channels, np.int32)
        pattern, x, p = inverse.next_unit(
            there, n % shape.columns, 0, shape.channels, edges, scratch, lasts, shape.order, coding,
            x, words, p, end,
        )  # fmt: skip
        units.append(scratch.reshape(shape.channels, 16, 16))
        patterns.append(pattern)
        assert not edges.near.any()  # left as the next block needs it, whatever the payload was
    return np.array(units), np.array(patterns), x == 1 and p == end


def test_payloads_end_at_even_places():
    data, spans = coder.join([b"abc", b"de", b"", b"f"])
    assert data.tobytes() == b"\0abcde\0f\0\0"
    assert spans.tolist() == [[1, 4], [4, 6], [6, 6], [7, 8]]


@pytest.mark.parametrize("size", UNITS)
@given(seed=st.integers(0, 2**32 - 1))
def test_neighbour_sums(size, seed):
    """Those of the spec, 7.4, each asked for while the coefficient before it is not yet decoded."""
    magnitudes = np.zeros((18, 18), int)
    order = contexts(16)
    near = edges(1, 16, 1).near
    magnitudes[:size, :size] = np.random.default_rng(seed).integers(0, CAP + 1, (size, size))
    seen, before = np.zeros((18, 18), int), None
    # A table in which the entry of a pair is the neighbour sum that it was looked up for.
    table = np.zeros(PAIRS + CAP * 7 + 1, np.int32)
    table[PLACES : PLACES + 336], table[PAIRS:] = order.place, np.arange(CAP * 7 + 1)
    table[SUM_BIN : SUM_BIN + CAP * 7 + 1] = np.arange(CAP * 7 + 1)
    start, places = {4: 0, 8: 16, 16: 80}[size], scan(size).tolist()
    for k in range(size * size - 1, 0, -1):
        u, v = places[k]
        if before is not None and k == size * size - 2:
            stream.remember(*before, near)
            before = None
        place, total = stream.look_up(start + k, 0, near, table)
        assert place == 16 * u + v
        assert total == (2 * (seen[u, v + 1] + seen[u + 1, v]) + seen[u, v + 2] + seen[u + 1, v + 1] + seen[u + 2, v])
        if before is not None:
            stream.remember(*before, near)
        before = int(magnitudes[u, v]), place
        seen[u, v] = magnitudes[u, v]


@settings(max_examples=60, deadline=None)
@given(payload=st.binary(min_size=1, max_size=400), unit=st.sampled_from(UNITS), channels=st.sampled_from([1, 3]))
def test_random_payloads_are_refused_or_decode_alike(payload, unit, channels):
    shape = form(20, 24, channels, unit)
    kept = np.ones(shape.rows * shape.columns, np.uint8)
    coefficients, patterns, whole = reference.parse(shape, payload, kept)
    found = compiled_parse(shape, payload, kept)
    assert np.array_equal(found[0], coefficients)
    assert np.array_equal(found[1], patterns)
    assert found[2] == whole
    colour = np.zeros(1, int) if channels == 3 else None
    if whole:
        coder.decode(shape, [payload], kept[None], np.array([80]), colour)
    else:
        with pytest.raises(FormatError, match="does not end where its bytes end"):
            coder.decode(shape, [payload], kept[None], np.array([80]), colour)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_changed_payloads_are_refused_or_decode_alike(data):
    shape = form(32, 32, 3, 16)
    kept = np.ones(4, np.uint8)
    payload = bytearray(Encoder(shape, "fast").encode(picture(32, 32, 3), kept, 70)[0])
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(1, len(payload)))
    damaged = bytes(payload[:cut])
    expected, found = reference.parse(shape, damaged, kept), compiled_parse(shape, damaged, kept)
    assert np.array_equal(found[0], expected[0])
    assert found[2] == expected[2]


def test_a_damaged_sample_is_named_and_the_others_stay():
    shape = form(32, 32, 3, 16)
    kept = np.ones(4, np.uint8)
    payload, colour = Encoder(shape, "default").encode(picture(32, 32, 3), kept, 80)
    broken = payload[:-1] + bytes([payload[-1] ^ 1])
    with pytest.raises(FormatError) as caught:
        coder.decode(shape, [payload, broken, payload], np.ones((3, 4), bool), np.full(3, 80), np.full(3, colour))
    assert caught.value.sample == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.none(), st.binary(min_size=1, max_size=300)), min_size=1, max_size=6), st.integers(0, 9))
def test_damaged_samples_change_no_other_of_a_batch(batch, cut):
    """None is a whole payload; those of a batch lie one after the other, of odd and even lengths."""
    shape = form(20, 24, 3, 8)
    units = shape.rows * shape.columns
    good, _ = Encoder(shape, "default").encode(picture(20, 24, 3, cut), np.ones(units, np.uint8), 80 + cut)
    payloads = [good if payload is None else payload for payload in batch]
    bench = filter_compiled.bench(shape.filter_tables, shape.rows, shape.columns, 3, 8)

    def decoded(some):
        out = np.zeros((len(some), 3, 20, 24), np.uint8)
        n = len(some)
        bad = coder.decode_compiled(
            shape, some, np.ones((n, units), np.uint8), STEPS[np.full(n, 80 + cut)], shape.rotations[np.zeros(n, int)],
            bench, out,
        )  # fmt: skip
        return out, bad

    alone = [decoded([payload]) for payload in payloads]
    together, bad = decoded(payloads)
    assert bad == next((k for k, (_, each) in enumerate(alone) if each >= 0), -1)
    np.testing.assert_array_equal(together, np.concatenate([out for out, _ in alone]))


def test_without_numba_the_reference_decodes(monkeypatch):
    shape = form(24, 24, 3, 8)
    kept = np.ones((1, 9), bool)
    payload, colour = Encoder(shape, "default").encode(picture(24, 24, 3), kept[0].astype(np.uint8), 80)
    fast = coder.decode(shape, [payload], kept, np.array([80]), np.array([colour]))
    monkeypatch.setattr(coder, "COMPILED", False)
    slow = coder.decode(shape, [payload], kept, np.array([80]), np.array([colour]))
    assert np.abs(fast.astype(int) - slow).max() <= 1


def test_literal_stream():
    """One grey unit of 4 x 4: DC level 0 and last 0 in a stream that was worked out by hand."""
    one = np.ones((1, 16), np.uint16)
    coefficient = one.copy()
    coefficient[0, 0] = 4096 - 24
    side = one.copy()
    side[0, 0] = 4096 - 15
    order = contexts(4)
    made = tables.Tables(
        4, np.zeros(2 * order.pairs + order.sides, np.uint8), coefficient, side, np.zeros((1, 3), np.uint8),
        np.zeros(3, np.int8), True,
    )  # fmt: skip
    shape = Format(4, 4, 1, made)
    kept = np.ones(1, np.uint8)
    # Backwards from x = 1: place 1 of symbol 0, twice. Symbol 0 has the slots 0, 1, 2, ... of its own bucket first.
    assert Encoder(shape, "default").encode(np.full((4, 4, 1), 128, np.uint8), kept, 80)[0] == b"\x01"
    assert reference.parse(shape, b"\x01", kept)[0].any() == np.False_
    assert reference.parse(shape, b"\x01", kept)[2]
    for other in (b"\x00", b"\x02", b"\x01\x00\x00\x00\x00\x00"):
        assert not reference.parse(shape, other, kept)[2]


@pytest.mark.parametrize("unit", UNITS)
def test_alias_tables_have_every_slot_once(unit):
    made = tables.default(tables.DEFAULT, unit, OFFSETS[True], True)
    for signed, stored in ((True, made.coefficient), (False, made.side)):
        for frequency in tables.alphabet(stored, signed):
            slots = slots_of(frequency)
            assert sorted(slots.tolist()) == list(range(4096))
            ends = np.cumsum(frequency)
            for slot in (0, 1, 127, 128, 2000, 4095):  # the decoder finds the symbol that owns the slot
                symbol, x, _ = stream.symbol(0, tables.alias(frequency).tolist(), 4096 + slot, [0], 0, 0)
                owner = int(np.searchsorted(ends, np.flatnonzero(slots == slot)[0], "right"))
                place = int(np.flatnonzero(slots == slot)[0] - (ends[owner] - frequency[owner]))
                assert (symbol, x) == (owner, int(frequency[owner]) + place)


@pytest.mark.parametrize("size", UNITS)
def test_scan_and_classes(size):
    places = scan(size).tolist()
    assert len({tuple(place) for place in places}) == size * size
    assert places[:6] == [[0, 0], [0, 1], [1, 0], [0, 2], [1, 1], [2, 0]]
    seen = {place: k for k, place in enumerate(map(tuple, places))}
    for (u, v), k in seen.items():  # all neighbours of a coefficient are coded before it
        near = [(u, v + 1), (u + 1, v), (u + 1, v + 1), (u, v + 2), (u + 2, v)]
        assert all(seen[n] > k + (0 < k < size * size - 2) for n in near if n in seen)  # nor is it the one just before
    assert max(position_class(size, k, u, v) for (u, v), k in seen.items()) < CLASSES[size]


def test_matrices():
    for size in UNITS:
        assert np.allclose(matrix(size) @ matrix(size).T, np.eye(size), atol=1e-6)
    turn = np.random.default_rng(0).integers(0, 256, (50, 3)).astype(np.uint8)
    for u in rotation_matrices(turn):
        assert np.allclose(u @ u.T, np.eye(3), atol=1e-6)
        back = rotation_matrices(np.round(angles(u.astype(float)) * 256).astype(int)[None] % 256)[0]
        assert np.allclose(back, u, atol=1e-5)


@pytest.mark.parametrize("size", UNITS)
def test_the_inverse_transform_at_every_last(size):
    """The compiled one looks only at rows and columns that `last` says may be other than 0."""
    rng, basis = np.random.default_rng(size), matrix(size)
    for last in range(size * size):
        c, work = np.zeros((size, size), np.float32), rng.random(768).astype(np.float32)
        u, v = scan(size)[: last + 1].T
        c[u, v] = rng.normal(0, 50, last + 1)
        at = 256 + 16 * (16 - size) + 16 - size  # the last block of the second plane
        before = work.copy()
        block = np.lib.stride_tricks.as_strided(work[at:], (size, size), (64, 4))
        block[:] = c
        rows, columns = inverse.live(size, last)
        block[rows:] = np.nan
        block[:, columns + columns % 2 :] = np.nan
        inverse.transform(size, rows, columns, work, at)
        assert np.allclose(block, basis.T @ c @ basis, atol=1e-3)
        block[:] = np.lib.stride_tricks.as_strided(before[at:], (size, size), (64, 4))
        assert np.array_equal(work, before)  # nothing beside it


@pytest.mark.parametrize(("size", "unit"), [(size, unit) for unit in UNITS for size in UNITS if size <= unit])
def test_the_forward_transform_of_every_block(size, unit):
    """Of a unit somewhere in a plane, blocks in the encoder's order, each by scan index: D P D^T."""
    plane, at = np.random.default_rng(size + unit).normal(0, 50, (40, 50)).astype(np.float32), (3, 7)
    out, end = np.zeros(20 + unit * unit, np.float32), 10 + unit * unit
    forward = getattr(encoder, f"forward{size}_{unit}")
    forward(plane.ravel(), at[0] * 50 + at[1], 50, out, 10, np.full(256, np.nan, np.float32))
    here, d = plane[at[0] : at[0] + unit, at[1] : at[1] + unit].astype(float), matrix(size).astype(float)
    places = [(y, x) for y in range(0, unit, size) for x in range(0, unit, size)]
    if unit == 4 * size:  # quadrant by quadrant
        places.sort(key=lambda place: (place[0] // 8, place[1] // 8))
    u, v = scan(size).T
    expected = [(d @ here[y : y + size, x : x + size] @ d.T)[u, v] for y, x in places]
    np.testing.assert_allclose(out[10:end], np.concatenate(expected), atol=1e-3)
    assert not out[:10].any()
    assert not out[end:].any()


def test_wrong_tables():
    good = tables.default(tables.DEFAULT, 16, OFFSETS[True], True)

    def changed(**fields):
        values = {name: getattr(good, name) for name in ("context", "coefficient", "side", "rotation", "offset")}
        return tables.Tables(unit=16, dependent=True, **{**values, **fields})

    zero = good.coefficient.copy()
    zero[3, 15] = 0
    beyond = good.context.copy()
    beyond[7] = len(good.coefficient)
    for fields, message in [
        ({"context": good.context[:-1]}, "shape"),
        ({"coefficient": zero}, "under 1 or do not add up"),
        ({"side": good.side + 1}, "do not add up"),
        ({"context": beyond}, "a distribution that is not there"),
        ({"rotation": good.rotation[:0]}, "shape"),
        ({"offset": np.array([32, 0, 0], np.int8)}, "beyond 31"),
    ]:
        with pytest.raises(FormatError, match=message):
            changed(**fields)
    with pytest.raises(UnsupportedFeatureError, match="'better-9'"):
        tables.default("better-9", 16, OFFSETS[True], True)


def test_built_in_tables_never_change():
    folder = Path(dqcodec.codec.dct.__file__).parent
    spec = (Path(__file__).parents[2] / "spec" / "dqz-1.md").read_text()
    for unit in UNITS:
        data = (folder / f"{tables.DEFAULT}-{unit}.bin").read_bytes()
        assert hashlib.sha256(data).hexdigest() in spec
        assert tables.pack(tables.unpack(data, unit, OFFSETS[True], True)) == data


def test_trained_tables_code_symbols_that_were_never_seen():
    order = contexts(16)
    counts = np.zeros((2 * order.pairs + order.sides, 16), np.int64)
    rotation = np.zeros((1, 3), np.uint8)
    shape = Format(32, 32, 3, train.make(counts, order, rotation, OFFSETS[True], dependent=True))
    counts[::7, 0] = 5
    for made in (shape, Format(32, 32, 3, train.make(counts, order, rotation, OFFSETS[True], dependent=True))):
        kept = np.ones(4, np.uint8)
        image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
        payload, colour = Encoder(made, "default").encode(image, kept, 16)
        fast, slow = both(made, [payload], kept[None].astype(bool), np.array([16]), np.array([colour]))
        assert np.array_equal(fast, slow)
        assert np.abs(fast[0].transpose(1, 2, 0).astype(int) - image).max() <= 3


def test_training_saves_bytes_on_what_it_was_trained_on():
    shape = form(64, 64, 3, 16)
    kept = np.ones(16, np.uint8)
    images = [picture(64, 64, 3, seed, noise=20) for seed in range(12)]
    counts = sum(Encoder(shape, "default").count(image, kept, 90) for image in images)
    own = Format(64, 64, 3, train.make(counts, shape.order, shape.tables.rotation, OFFSETS[True], dependent=True))
    assert bits_of(counts, own.tables, own) < 0.95 * bits_of(counts, shape.tables, shape)


@pytest.mark.parametrize(("effort", "most"), [("fast", 0.12), ("default", 0.36), ("best", 0.36)])
def test_a_bit_costs_less_where_steps_are_coarse(effort, most):
    """By half for each bit between 3.6 and 1.6; to a sixteenth of a bit."""
    bits = np.array([8, 5, 3.6, 3.1, 2.6, 1.6, 1])
    found = [lagrange(scale_index(b, effort), dependent(effort)) for b in bits]
    assert found == pytest.approx([most, most, most, most / 2**0.5, most / 2, most / 4, most / 4], rel=0.03)
    every = [lagrange(q, dependent(effort)) for q in range(256)]
    assert (np.diff(every) <= 0).all()


@pytest.mark.parametrize("effort", ["fast", "default"])
def test_coarse_steps_leave_detail_in(monkeypatch, effort):
    """More than the least squared error would; and a coarser step never makes an image larger."""
    shape, kept = Format(64, 64, 3, tables.built_in(16, dependent(effort))), np.ones(16, np.uint8)
    image = picture(64, 64, 3)
    sizes = [len(Encoder(shape, effort).encode(image, kept, q)[0]) for q in range(40, 140)]
    assert (np.diff(sizes) <= 3).all()
    fine = scale_index(5, effort), scale_index(2, effort)
    found = [len(Encoder(shape, effort).encode(image, kept, q)[0]) for q in fine]
    monkeypatch.setattr("dqcodec.codec.dct.pack.FINE", 1.6)  # as if there were none that is coarse
    least = [len(Encoder(shape, effort).encode(image, kept, q)[0]) for q in fine]
    assert found[0] == least[0]
    assert found[1] > 1.05 * least[1]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("side", [1, 17, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_activity_of_an_image(unit, side, channels):
    """By its definition, where the last units stick out and some are missing, too."""
    image = picture(side, side + 3, channels)
    encoder = Encoder(Format(side, side + 3, channels, tables.built_in(unit, True)), "default")
    form = encoder.form
    kept = (np.random.default_rng(0).random(form.rows * form.columns) < 0.6).astype(np.uint8)
    kept[0] = 1
    there = kept.reshape(form.rows, form.columns).repeat(unit, 0).repeat(unit, 1)[:side, : side + 3] > 0
    values = image.astype(float)
    squares = [(np.diff(values, axis=axis) ** 2).sum(2) for axis in (0, 1)]
    squares = np.concatenate([squares[0][there[:-1]], squares[1][there[:, :-1]]])
    expected = squares.mean() * (3 if channels == 1 else 1)
    assert np.trace(encoder.moments(image, kept)) == pytest.approx(expected)


@pytest.mark.parametrize("unit", UNITS)
def test_an_images_rotation_is_the_nearest(unit):
    """The compiled search of one image, against the formula for many, where units are missing, too."""
    rng = np.random.default_rng(0)
    colours = rng.normal(0, 1, (60, 3, 3)) * rng.uniform(0.1, 30, (60, 1, 3))
    noise = rng.normal(0, 1, (60, 32, 36, 3)) @ colours[:, None]
    images = (128 + noise).clip(0, 255).astype(np.uint8)
    encoder = Encoder(Format(32, 36, 3, tables.built_in(unit, False)), "fast")
    kept = (rng.random((60, encoder.form.rows * encoder.form.columns)) < 0.7).astype(np.uint8)
    kept[:, 0] = 1
    moments = np.array([encoder.moments(*sample) for sample in zip(images, kept, strict=True)])
    expected = train.nearest(moments, encoder.form.rotations.astype(float)).tolist()
    assert len(set(expected)) >= 10
    assert [encoder.encode(*sample, 80)[1] for sample in zip(images, kept, strict=True)] == expected


def test_the_nearest_rotation_by_its_definition():
    rng = np.random.default_rng(0)
    spread = rng.normal(0, 5, (20, 3, 3))
    moments, turns = spread @ spread.swapaxes(1, 2), rotation_matrices(tables.built_in(16, True).rotation).astype(float)
    expected = [
        min(range(len(turns)), key=lambda r: np.log(8 + np.diag(turns[r] @ m @ turns[r].T)).sum()) for m in moments
    ]
    assert train.nearest(moments, turns).tolist() == expected
