"""Records -> batches: an endless, weighted, seeded stream for training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from glmd_runtime.preprocess import PreprocessSpec
from glmd_train.config import AugmentConfig, DatasetConfig
from glmd_train.data.coco import Record, load_coco
from glmd_train.data.transforms import Sample, augment
from glmd_train.model.matching import Target

Batch = tuple[Tensor, Tensor, list[Target]]  # images (B, C, H, W), valid_hw (B, 2), targets


class TrainingStream(IterableDataset[Sample]):
    """Draws pictures for ever; a picture's chance is its set's weight. `start` skips what a resumed run has seen."""

    def __init__(
        self, datasets: list[DatasetConfig], class_names: tuple[str, ...], spec: PreprocessSpec, config: AugmentConfig,
        seed: int, rank: int = 0,
    ) -> None:
        sets = [load_coco(d.annotations, class_names, d.images) for d in datasets]
        self.records: list[Record] = [record for records in sets for record in records]
        weights = np.concatenate([np.full(len(r), d.weight) for r, d in zip(sets, datasets, strict=True)])
        self.chances = weights / weights.sum()
        self.spec, self.config, self.seed, self.rank = spec, config, seed, rank
        self.start = 0

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        # Seeded by what makes the stream unique, the starting point included: a resumed run draws new pictures.
        rng = np.random.default_rng([self.seed, self.rank, worker.id if worker else 0, self.start])
        while True:
            record = self.records[rng.choice(len(self.records), p=self.chances)]
            yield augment(record.read(), record, self.spec, self.config, rng)


def collate(samples: list[Sample]) -> Batch:
    """Stack samples; all have one canvas."""
    images = torch.from_numpy(np.stack([s.image for s in samples]))
    valid_hw = torch.tensor([s.valid_hw for s in samples], dtype=torch.float32)
    targets = [
        Target(torch.from_numpy(s.boxes), torch.from_numpy(s.labels), torch.from_numpy(s.ignore)) for s in samples
    ]
    return images, valid_hw, targets


def training_loader(stream: TrainingStream, batch_size: int, workers: int) -> DataLoader[Batch]:
    return DataLoader(stream, batch_size, num_workers=workers, collate_fn=collate)
