"""Records of text: how small, how fast, and what do the methods of selection keep?

    python benchmarks/text.py RECORDS.jsonl SUBSETS.json EMBEDDINGS.npy      results/text.json, text.png

RECORDS are instructions with a `source`, EMBEDDINGS a row for each (all-MiniLM-L6-v2). SUBSETS says which of them the
authors of Dataset Quantization published as their own selection of Alpaca's 52,002 records (dq_k5), and which are a
random sample of these.

Size: the whole file, dictionary and columns counted, against zstd -19 of each kept record's line by itself, at 20% kept
(dq). Beside it what other frames and dictionaries would take, payload and dictionary alone.
Random access: `RecordFile.records` of 1,000 indices drawn from all records, one thread, the file in the page cache.
Coverage: mean distance (1 - cosine) from every record to its nearest kept one, and the share of each source.
Against dq_k5: 1,000 records chosen from those of dq_k5 that are in no random sample, measured on the random samples
beside the authors' own 1,000 and 5,200, each record to its nearest chosen one but itself.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import zstandard
from common import RESULTS, save

import dqcodec
from dqcodec.codec import text
from dqcodec.container.spec import Array
from dqcodec.selection import adq_scores, sample
from dqcodec.selection.binning import at_random, divide
from dqcodec.sources.records import scan

METHODS = ("dq", "adq", "graphcut", "random")
RATIOS = (0.02, 0.2)
SEEDS = (0, 1, 2)
FRAMES = (1, 2, 4, 8, 16, 32)


def unit(rows: Array) -> Array:
    found: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def distance(rows: Array, chosen: Array, without: Array | None = None) -> float:
    """Mean of 1 - cosine from each row to its nearest chosen one.

    rows, chosen  float (N, D), (M, D), of length 1
    without       bool (N, M), pairs that do not count
    """
    nearest = []
    for start in range(0, len(rows), 2048):
        near = rows[start : start + 2048] @ chosen.T
        if without is not None:
            near[without[start : start + 2048]] = -1
        nearest.append(near.max(1))
    return round(float(1 - np.concatenate(nearest).mean()), 4)


def sizes(packed: list[bytes], baseline: int) -> list[dict[str, Any]]:
    """Payload and dictionary by frame, against the baseline, and the time to decode a frame."""
    rows = []
    for frame in FRAMES:
        dictionary = text.train(packed, frame)
        coder = text.Coder(dictionary)
        groups = [packed[start : start + frame] for start in range(0, len(packed), frame)]
        frames = [coder.compress(text.join(group)) for group in groups]
        start = time.perf_counter()
        for group, data in zip(groups, frames, strict=True):
            text.split(coder.decompress(data), len(group))
        took = (time.perf_counter() - start) / len(frames)
        stored = len(text.stored_dictionary(dictionary)) if dictionary else 0
        rows.append({
            "frame": frame, "dictionary": len(dictionary), "stored": stored,
            "ratio": round((sum(map(len, frames)) + stored) / baseline, 4),
            "microseconds a frame": round(took * 1e6, 1),
        })  # fmt: skip
    return rows


def access(path: Path, reads: int = 40) -> dict[str, int]:
    """Records a second, at random and in order."""
    rng = np.random.default_rng(0)
    with dqcodec.open(path) as file:
        assert not isinstance(file, dqcodec.DQZFile)
        batches = [rng.integers(0, len(file), 1000).tolist() for _ in range(reads)]
        ordered = list(file.batches())
        found = {}
        for name, every in (("at random", batches), ("in order", ordered), ("at random, one by one", batches[:5])):
            best = 0.0
            for _ in range(3):
                start = time.perf_counter()
                for batch in every:
                    if "one" in name:
                        for index in batch:
                            file.records([index])
                    else:
                        file.records(batch)
                best = max(best, sum(map(len, every)) / (time.perf_counter() - start))
            found[name] = round(best)
    return found


def coverage(rows: Array, sources: Array) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """By method, ratio and seed; bins are made once, they depend on neither ratio nor seed."""
    binnings = {method: divide(rows, None, 1 if method == "graphcut" else 10) for method in ("dq", "graphcut")}
    found: list[dict[str, Any]] = []
    pictures: dict[str, Array] = {}
    for method in METHODS:
        for seed in SEEDS[: 1 if method == "graphcut" else None]:  # whose picks no seed changes
            binning = at_random(None, len(rows), seed) if method == "random" else binnings.get(method, binnings["dq"])
            scored = adq_scores(rows, binning.bin, 10, seed) if method == "adq" else {}
            for ratio in RATIOS:
                kept = sample(binning, None, ratio, method, seed, rs=scored.get("rs"), ds=scored.get("ds")).kept
                names, counts = np.unique(sources[kept], return_counts=True)
                share = {str(n): round(float(c / len(kept)), 4) for n, c in zip(names, counts, strict=True)}
                away = distance(rows, rows[kept])
                found.append({"method": method, "keep": ratio, "seed": seed, "distance": away, "share": share})
                print(found[-1], file=sys.stderr, flush=True)
                if ratio == RATIOS[0]:
                    pictures.setdefault(method, kept)
    return found, pictures


def seconds_of_selection(rows: Array) -> dict[str, float]:
    """Bins and sampling of 20%, from embeddings."""
    found = {}
    for method in METHODS:
        start = time.perf_counter()
        dqcodec.select(rows, None, RATIOS[-1], 10, method)
        found[method] = round(time.perf_counter() - start, 2)
    return found


def against_published(rows: Array, subsets: dict[str, list[int]]) -> list[dict[str, Any]]:
    sample = np.array(sorted({*subsets["random_1k"], *subsets["random_5k"]}))
    pool = np.array(sorted({*subsets["dq_k5_1k"], *subsets["dq_k5_5k"]} - set(sample.tolist())))
    ways: dict[str, list[Array]] = {name: [np.array(subsets[name])] for name in ("dq_k5_1k", "dq_k5_5k", "random_1k")}
    for method in METHODS:
        chosen = [pool[dqcodec.select(rows[pool], None, 1000 / len(pool), 5, method, seed).kept] for seed in SEEDS]
        ways[f"{method}, 1,000 of dq_k5"] = chosen
    found = []
    for name, sets in ways.items():
        each = [distance(rows[sample], rows[own], sample[:, None] == own) for own in sets]
        found.append({"chosen": name, "records": len(sets[0]), "distance": each})
        print(found[-1], file=sys.stderr, flush=True)
    return found


def picture(rows: Array, sources: Array, kept: dict[str, Array], path: Path) -> None:
    """All records as t-SNE places them, by source, and what each method keeps."""
    from sklearn.manifold import TSNE

    some = np.sort(np.random.default_rng(0).permutation(len(rows))[:4000])
    shown = np.unique(np.concatenate([some, *kept.values()]))
    place = TSNE(init="pca", random_state=0).fit_transform(rows[shown])
    names = np.unique(sources)
    figure, axes = plt.subplots(1, len(kept) + 1, figsize=(4 * (len(kept) + 1), 4.4))
    for name in names:
        own = sources[shown] == name
        axes[0].scatter(*place[own].T, s=2, label=name)
    axes[0].set_title("records by source")
    axes[0].legend(fontsize=7, markerscale=4, loc="lower left")
    for axis, (method, chosen) in zip(axes[1:], kept.items(), strict=True):
        own = np.isin(shown, chosen)
        axis.scatter(*place[~own].T, s=1, color="0.85")
        axis.scatter(*place[own].T, s=4, color="C3")
        axis.set_title(f"{method}, {RATIOS[0]:.0%}")
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    path, subsets, embeddings = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), sys.argv[3]
    records = [entry.record for entry in scan(path) if entry.record is not None]
    rows, sources = unit(np.load(embeddings)), np.array([record["source"] for record in records])
    with tempfile.TemporaryDirectory() as folder:
        small, whole = Path(folder) / "small.dqz", Path(folder) / "whole.dqz"
        options = dqcodec.TextOptions(keep=0.2, method="dq", features=embeddings)
        seconds = dqcodec.encode_text(path, small, options).seconds
        with dqcodec.open(small) as file:
            kept = [records[n] for n in file.source_index.tolist()] if file.source_index is not None else []
            assert list(file) == kept
        lines = [json.dumps(record, ensure_ascii=False).encode() for record in kept]
        alone = zstandard.ZstdCompressor(level=19)
        baseline = sum(len(alone.compress(line)) for line in lines)
        stream = len(alone.compress(b"\n".join(lines)))
        frames = sizes([text.pack(record) for record in kept], baseline)
        dqcodec.encode_text(path, whole, dqcodec.TextOptions(keep=1))
        speed = access(whole)
        size = {
            "records": len(kept), "JSON lines": sum(map(len, lines)), "zstd -19 of each": baseline,
            "zstd -19 of all in one stream": stream, "file": small.stat().st_size,
            "ratio": round(small.stat().st_size / baseline, 4), "ratio of one stream": round(stream / baseline, 4),
        }  # fmt: skip
        print(size, speed, file=sys.stderr, flush=True)
    found, pictures = coverage(rows, sources)
    RESULTS.mkdir(exist_ok=True)
    picture(rows, sources, pictures, RESULTS / "text.png")
    names, counts = np.unique(sources, return_counts=True)
    save("text", {
        "records": len(records),
        "sources": {str(n): round(float(c / len(records)), 4) for n, c in zip(names, counts, strict=True)},
        "size at 20%": size,
        "seconds of encode, embeddings given": {name: round(took, 2) for name, took in seconds.items()},
        "frames": frames,
        "records a second": speed,
        "seconds of bins and sampling": seconds_of_selection(rows),
        "coverage": found,
        "published selection, on random samples of Alpaca": against_published(rows, subsets),
    })  # fmt: skip


if __name__ == "__main__":
    main()
