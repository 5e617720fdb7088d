"""DQZLoader: batches of a .dqz, decoded by threads of this process, in an order that can be resumed.

    for images, targets in DQZLoader("out.dqz", batch_size=128, device="cuda"):
        ...

    order -> read -> checksum -> entropy decode -> place -> fill -> transform -> (images, targets)

Threads do it up to the entropy decoding, some batches ahead; on a CPU up to the filling, and the transform is left to
the thread that takes the batches. On a GPU the rest is done there, on a stream of its own, a batch ahead; images of the
transform dct are decoded there, too, if `dqcodec[torch,cuda]` is installed. Threads are enough, because the decoder
holds no interpreter lock; no process is forked and no memory shared.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dqcodec import checks
from dqcodec.data.dataset import ON_ERROR, Decoded, DecodedRecords, DQZDataset
from dqcodec.data.order import permutation, share
from dqcodec.errors import FormatError, OptionError
from dqcodec.features import torch_device
from dqcodec.parallel import alone, default_workers, ordered_map

Array = npt.NDArray[Any]
Batch = tuple[Any, Tensor]
STATE = ("seed", "epoch", "position", "shuffle", "fingerprint")
NOTHING = object()  # of a batch whose samples are all left out
MAX_SEED, MAX_EPOCH = (1 << 64) - 1, (1 << 32) - 1


class DQZLoader:
    """Batches (images uint8 (n, C, H, W) after the transform, targets int64 (n,)), both on the device.

    With a dataset of soft labels targets are float32 (n, classes).

        dataset       a DQZDataset without transforms of single images, or the path of a file
        batch_size    samples of a batch, on this rank
        shuffle       a new order for every epoch, the same for the same (seed, epoch) on every machine; or file order
        device        where batches are placed, filled and transformed; by default the dataset's, for a path a GPU
                      where there is one
        transform     called with the images of a batch, or with its records: a transform of torchvision's v2, or a
                      tokenizer, say. It runs in the thread
                      that takes the batches, in order, so that torch's seed decides what it draws
        drop_last     leave away what does not fill a batch on every rank
        rank, world_size   which share of every batch is this process's; by default torch.distributed's, once that is
                      initialised, or all of it
        prefetch      batches that are being decoded or wait, at most; at least one for each thread
        workers       threads; by default one for each processor
        on_error      as for DQZDataset; a batch of which nothing is left is left out too, and an epoch of which nothing
                      is left is a FormatError

    Of a file of text a batch is a list of records (dicts), or what the transform makes of it, without targets.

    Each iterator that gave a batch was an epoch; `set_epoch` says which one comes next. All ranks get equally many
    batches, but for those of which `on_error` left nothing: without drop_last the end is filled up with samples of the
    epoch's beginning, `padded` says how many.

    `state_dict()` says in five numbers and words what the batches handed out so far were; after `load_state_dict` the
    next `iter` goes on with the sample after them, on any number of ranks, with any batch size and any number of
    threads. Raises OptionError for wrong arguments and for the state of another file.
    """

    def __init__(
        self,
        dataset: DQZDataset | str | Path,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        device: str | torch.device | None = None,
        transform: Callable[[Any], Any] | None = None,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        prefetch: int = 4,
        workers: int | None = None,
        on_error: str | None = None,
    ) -> None:
        self.dataset = _dataset(dataset, device, on_error)
        self.batch_size = checks.integer("batch_size", batch_size, 1)
        self.shuffle, self.drop_last = checks.boolean("shuffle", shuffle), checks.boolean("drop_last", drop_last)
        self.seed = checks.integer("seed", seed, 0, MAX_SEED)
        self.transform = transform
        self._ranks = _ranks(world_size, rank)
        self.workers = checks.integer("workers", default_workers() if workers is None else workers, 1)
        self.prefetch = checks.integer("prefetch", prefetch, 1)
        self.epoch = 0
        self._position = 0  # of the epoch's samples, taken by all ranks together
        self._made = 0  # iterators; each has its number
        self._latest = 0  # the state follows newer ones only
        self._run: int | None = None  # the one that it follows, while `epoch` is the epoch that it goes through

    @property
    def world_size(self) -> int:
        return self._shares()[0]

    @property
    def rank(self) -> int:
        return self._shares()[1]

    def _shares(self) -> tuple[int, int]:
        """Number of ranks and this one's number; a process may become one of several after the loader was made."""
        if self._ranks is not None:
            return self._ranks
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_world_size(), distributed.get_rank()
        return 1, 0

    @property
    def padded(self) -> int:
        """Samples that occur twice in an epoch so that all ranks have equally many."""
        return 0 if self.drop_last else -len(self.dataset) % self.world_size

    @property
    def skipped(self) -> set[int]:
        """Indices of the damaged samples that were left out so far."""
        return self.dataset.skipped

    def __len__(self) -> int:
        """Batches of a whole epoch on each rank, those that `on_error` may leave out included."""
        step = self.batch_size * self.world_size
        return len(self.dataset) // step if self.drop_last else -(-len(self.dataset) // step)

    def set_epoch(self, epoch: int) -> None:
        """The next `iter` is that epoch: from its beginning, or from where a loaded state stands in it."""
        epoch = checks.integer("epoch", epoch, 0, MAX_EPOCH)
        if epoch != self.epoch or self._run is not None:
            self.epoch, self._position, self._run, self._latest = epoch, 0, None, self._made

    def state_dict(self) -> dict[str, Any]:
        """What the batches handed out so far were: a small dict for JSON."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self._position,
            "shuffle": self.shuffle,
            "fingerprint": self.dataset.file.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next `iter` goes on with the sample after those of the state."""
        if not isinstance(state, dict) or set(state) != set(STATE) or not isinstance(state["fingerprint"], str):
            raise OptionError(
                f"state: {str(state)[:80]}; expected a dict with {', '.join(STATE)}, as state_dict made it"
            )
        if state["fingerprint"] != self.dataset.file.fingerprint:
            raise OptionError(
                f"state: of a file with the fingerprint {str(state['fingerprint'])[:12]}..., "
                f"{self.dataset.file.path} has {self.dataset.file.fingerprint[:12]}...; resume with the same file"
            )
        if state["shuffle"] is not self.shuffle:
            raise OptionError(f"state: made with shuffle={state['shuffle']}, this loader has shuffle={self.shuffle}")
        seed = checks.integer("state: seed", state["seed"], 0, MAX_SEED)
        epoch = checks.integer("state: epoch", state["epoch"], 0, MAX_EPOCH)
        position = checks.integer("state: position", state["position"], 0, len(self.dataset))
        self.seed, self.epoch, self._position, self._run, self._latest = seed, epoch, position, None, self._made

    def __iter__(self) -> Iterator[Any]:
        epoch, position = (self.epoch, self._position) if self._run is None else (self.epoch + 1, 0)
        samples, (world_size, rank) = len(self.dataset), self._shares()
        order = permutation(samples, self.seed, epoch) if self.shuffle else np.arange(samples)
        batches = share(order, position, self.batch_size, rank, world_size, self.drop_last)
        self._made += 1
        return self._batches(self._made, batches, epoch, position, self.batch_size * world_size)

    def _batches(self, run: int, batches: list[Array], epoch: int, position: int, step: int) -> Iterator[Any]:
        """What the batches hold; the state follows what is handed out, while no newer iterator has given a batch.

        run    the iterator's number
        step   samples that all ranks take with a batch
        """
        given = False
        ahead = max(self.workers, self.prefetch)
        decoded: Generator[Any]
        finished: Iterator[Any]
        if self.dataset.device.type == "cuda":
            # With its number: the current device of the threads is another matter.
            self.dataset.device = torch.empty(0, device=self.dataset.device).device
            decoded = ordered_map(self._decode, batches, self.workers, ahead)
            finished = _on_a_stream(decoded, lambda batch: self._transform(self._finish(batch)), self.dataset.device)
        else:
            decoded = ordered_map(lambda i: self._finish(self._decode(i)), batches, self.workers, ahead, alone)
            finished = (self._transform(batch) for batch in decoded)
        with closing(decoded):
            for number, batch in enumerate(finished):
                # An epoch is begun with its first batch: some frameworks ask for iterators in vain.
                if number == 0 and run > self._latest:
                    self.epoch, self._position, self._run, self._latest = epoch, position, run, run
                if self._run == run:
                    self._position = min(self._position + step, len(self.dataset))
                if batch is not NOTHING:
                    given = True
                    yield batch
        if batches and not given and position == 0:
            path = self.dataset.file.path
            raise FormatError(f"{path}: each of the epoch's samples is damaged; dqcodec verify says more", path=path)
        if self._run == run or (not batches and run > self._latest):
            self.epoch, self._position, self._run, self._latest = epoch + 1, 0, None, run

    def _decode(self, indices: Array) -> Decoded | DecodedRecords | None:
        """In a thread; None where every sample is damaged and may be left out."""
        try:
            batch = self.dataset.decode(indices.tolist())
        except FormatError as error:
            if error.sample not in self.dataset.skipped:
                raise
            return None
        return batch.pin_memory() if isinstance(batch, Decoded) and self.dataset.device.type == "cuda" else batch

    def _finish(self, batch: Decoded | DecodedRecords | None) -> Batch | None:
        """Images, or records, and targets, on the device."""
        if batch is None:
            return None
        targets = self.dataset.targets_of(batch.indices)
        return self.dataset.finish(batch), targets.to(self.dataset.device)

    def _transform(self, batch: Batch | None) -> Any:
        """What is handed out, or NOTHING."""
        if batch is None:
            return NOTHING
        values = batch[0] if self.transform is None else self.transform(batch[0])
        return values if self.dataset.is_text else (values, batch[1])


def _on_a_stream(batches: Iterable[Any], finish: Callable[[Any], Any], device: torch.device) -> Iterator[Any]:
    """`finish` of each batch on a stream of its own, a batch before it is asked for."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))  # the fill's weights may still be on their way
    waiting: list[tuple[Any, torch.cuda.Event]] = []
    for batch in batches:
        with torch.cuda.stream(side):
            waiting.append((finish(batch), side.record_event()))
        if len(waiting) > 1:
            yield _hand_over(*waiting.pop(0), device)
    for rest in waiting:
        yield _hand_over(*rest, device)


def _hand_over(batch: Any, ready: torch.cuda.Event, device: torch.device) -> Any:
    """The caller's stream waits for a batch, and its memory is not used again before that stream is through with it."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(ready)
    for tensor in tree_leaves(batch):
        if isinstance(tensor, Tensor) and tensor.is_cuda:
            tensor.record_stream(stream)
    return batch


def _dataset(given: DQZDataset | str | Path, device: str | torch.device | None, on_error: str | None) -> DQZDataset:
    """A dataset of the loader's own, with its device and its way with damaged samples."""
    if not isinstance(given, DQZDataset):
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return DQZDataset(given, device=device, on_error=on_error or "raise")
    if given.transform is not None or given.target_transform is not None:
        raise OptionError("dataset: it transforms single images; give a transform of batches to DQZLoader instead")
    own = copy.copy(given)  # shares the open file
    own.skipped = set()
    if on_error is not None:
        checks.choice("on_error", on_error, ON_ERROR)
        own.on_error = on_error
    if device is not None and not own.is_text:
        own.device, own._model = torch_device(str(device)), None
    return own


def _ranks(world_size: int | None, rank: int | None) -> tuple[int, int] | None:
    """Number of ranks and this one's number as they were given."""
    if (world_size is None) != (rank is None):
        raise OptionError("rank, world_size: give both or none")
    if world_size is None or rank is None:
        return None
    world_size = checks.integer("world_size", world_size, 1)
    return world_size, checks.integer("rank", rank, 0, world_size - 1)
