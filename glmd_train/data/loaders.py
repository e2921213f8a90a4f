"""Records -> batches. What the n-th picture of a run is follows from n alone, whichever process reads it and when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from glmd_runtime.camera.looks import Looks, Statistics
from glmd_runtime.errors import DatasetError, GlmdError
from glmd_runtime.preprocess import PreprocessSpec
from glmd_train.config import AugmentConfig, DatasetConfig
from glmd_train.data.coco import Record, load_coco_files
from glmd_train.data.gcoco import to_grey
from glmd_train.data.transforms import Sample, augment
from glmd_train.model.matching import Target

LOOKED_AT = 200  # pictures that tell what a training's look like

Batch = tuple[Tensor, Tensor, list[Target]]  # images (B, C, H, W), valid_hw (B, 2), targets


class TrainingSet(Dataset[Sample]):
    """The pictures of a run by their number, 0, 1, 2 ... without end; a picture's chance is its set's weight."""

    def __init__(
        self, datasets: list[DatasetConfig], class_names: tuple[str, ...], spec: PreprocessSpec, config: AugmentConfig,
        seed: int,
    ) -> None:
        self.records: list[Record] = []
        self.grey: list[bool] = []
        weights: list[float] = []
        for dataset in datasets:
            records = load_records(dataset, class_names)
            self.records += records
            self.grey += [dataset.grey] * len(records)
            weights += [dataset.weight] * len(records)
        # Equal chances are dealt as a shuffled deck, so that every picture comes once before one comes twice.
        self.chances = None if len(set(weights)) == 1 else np.asarray(weights) / sum(weights)
        self.class_names, self.spec, self.config, self.seed = class_names, spec, config, seed

    def count_objects(self) -> dict[str, int]:
        """Objects of each class."""
        labels = np.concatenate([record.labels for record in self.records])
        counts = np.bincount(labels, minlength=len(self.class_names))
        return dict(zip(self.class_names, counts.tolist(), strict=True))

    def check_classes(self, known: tuple[str, ...]) -> None:
        """Raises: DatasetError for classes without an object, unless the start weights know them."""
        without = [name for name, count in self.count_objects().items() if not count and name not in known]
        if without:
            raise DatasetError(
                f"The training pictures have no object of {without}, of which the start weights know nothing. Correct "
                "the names in class_names, leave them out, or label some."
            )

    def statistics(self) -> Statistics:
        """Brightness, contrast and colour of the run's pictures, as its first LOOKED_AT show them to the network."""
        return Statistics.of(Looks.of(intensities_of(self[n], self.spec)) for n in range(LOOKED_AT))

    def __getitem__(self, number: int) -> Sample:
        # The data of picture and augmentation are two streams: the deck of an epoch must not depend on either.
        rng = np.random.default_rng([self.seed, number, 1])
        index = self.pick(number)
        frame = self.records[index].read()
        return augment(to_grey(frame) if self.grey[index] else frame, self.records[index], self.spec, self.config, rng)

    def pick(self, number: int) -> int:
        """Which record the run's picture `number` is."""
        if self.chances is not None:
            return int(np.random.default_rng([self.seed, number]).choice(len(self.records), p=self.chances))
        epoch, place = divmod(number, len(self.records))
        return int(_deck(self.seed, epoch, len(self.records))[place])


def intensities_of(sample: Sample, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """The picture in a sample, without padding: (H, W) uint8 grey, or (H, W, 3) BGR."""
    mean, std = (np.asarray(values, np.float32) for values in (spec.mean, spec.std))  # (C,)
    h, w = sample.valid_hw
    picture = np.rint(sample.image[:, :h, :w].transpose(1, 2, 0) * std + mean).clip(0, 255).astype(np.uint8)
    return picture if spec.channels == 3 else picture[:, :, 0]


@lru_cache(maxsize=2)  # two, as a batch may hold the end of an epoch and the beginning of the next
def _deck(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(length)


def load_records(dataset: DatasetConfig, class_names: tuple[str, ...]) -> list[Record]:
    """The pictures of one set. Raises: DatasetError if it is unreadable or nothing is left of it."""
    records = load_coco_files([dataset.annotations], class_names, dataset.images)
    if not dataset.skip_empty:
        return records
    with_objects = [record for record in records if len(record.boxes)]
    if not with_objects:
        raise DatasetError(
            f"{dataset.annotations} has no object of the classes {list(class_names)}, and skip_empty leaves out "
            "pictures without one. Correct the class names, or choose another file."
        )
    return with_objects


class Slots(Sampler[list[int]]):
    """The numbers of the pictures that one process computes, `part` of them at a time, in iterations first to last - 1.

    An iteration's pictures are shared out in order: those of process 0 first, each process's in `accumulate` parts.
    """

    def __init__(self, first: int, last: int, *, part: int, accumulate: int, rank: int, processes: int) -> None:
        self.iterations = range(first, last)
        self.part, self.accumulate = part, accumulate
        self.rank, self.processes = rank, processes

    def __iter__(self) -> Iterator[list[int]]:
        for iteration in self.iterations:
            start = (iteration * self.processes + self.rank) * self.accumulate * self.part
            for part in range(self.accumulate):
                yield list(range(start + part * self.part, start + (part + 1) * self.part))

    def __len__(self) -> int:
        return len(self.iterations) * self.accumulate


def collate(samples: list[Sample]) -> Batch:
    """Stack samples; smaller ones are padded with 0, the mean, at the right and below.

    Images are channels-last in memory. Those of one channel say so by their strides only, if they are made like this.
    """
    h, w = (max(sample.image.shape[axis] for sample in samples) for axis in (1, 2))
    shape = len(samples), samples[0].image.shape[0], h, w
    images = torch.empty(shape, memory_format=torch.channels_last).zero_()
    for row, sample in zip(images, samples, strict=True):
        row[:, : sample.image.shape[1], : sample.image.shape[2]] = torch.from_numpy(sample.image)
    valid_hw = torch.tensor([s.valid_hw for s in samples], dtype=torch.float32)
    targets = [
        Target(torch.from_numpy(s.boxes), torch.from_numpy(s.labels), torch.from_numpy(s.ignore), s.key, s.name)
        for s in samples
    ]
    return images, valid_hw, targets


@contextmanager
def lost_workers() -> Iterator[None]:
    """Raises: GlmdError when the system ends a worker; torch says so to whatever the loop is at."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise GlmdError(
            f"A process that reads pictures was ended, as the system does when memory runs out ({error}). Set fewer "
            "workers or a smaller batch_size; what was saved last goes on with --resume."
        ) from None


def training_loader(pictures: TrainingSet, slots: Slots, workers: int) -> DataLoader[Batch]:
    return DataLoader(pictures, batch_sampler=slots, num_workers=workers, collate_fn=collate)
