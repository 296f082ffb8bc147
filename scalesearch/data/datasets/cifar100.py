"""CIFAR-100 (Krizhevsky 2009): as CIFAR-10 with a hundred kinds, the fine labels."""

from __future__ import annotations

from scalesearch.data.datasets.cifar10 import cifar
from scalesearch.data.spec import DataSpec, Log, Source

# As published in the checksums of TensorFlow Datasets.
SHA256 = {"cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"}


def source(spec: DataSpec, log: Log) -> Source:
    return cifar(spec, log, SHA256, {"train": ["train.bin"], "test": ["test.bin"]}, num_classes=100)
