"""How others train and score a network: what a tutorial has, what an expert writes, timm's parts, Lightning's Trainer.

Each function trains `network` with `recipe` on `data` from `seed` on `device`, and returns its validation accuracy.
Data are resized beforehand, by `scalesearch`; there are no worker processes of a loader, since they would take the core
that trains. `precision` is "float32" or "bfloat16" (autocast). Networks are those of `scalesearch.model.build`, as
torch trains them. The learning rate rises and falls linearly, step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from scalesearch.data import Data
from scalesearch.model import build
from scalesearch.network import Network
from scalesearch.training import Recipe, resized

SCORED = 500  # images at a time


def rate(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of a step as a share of its highest value."""
    done = step / steps
    return max(0.04, done / recipe.warmup) if done < recipe.warmup else (1 - done) / (1 - recipe.warmup)


def normalised(data: Data, split: str, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) float32 in channels_last, and labels (N,), on `device`."""
    images, labels = resized(data, split, side), data.train_labels if split == "train" else data.val_labels
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    images = images.div(255).sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)
    return images.to(device), labels.to(device)


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=True, fused=True)


class Images(TensorDataset):
    """A plain data set: resized beforehand, mirrored image by image."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, label = super().__getitem__(index)
        return image.flip(2) if torch.rand(()) < 0.5 else image, label


def plain(network: Network, recipe: Recipe, data: Data, seed: int, precision: str, device: torch.device) -> float:
    """What a tutorial has: a data set, a DataLoader, a scheduler, autocast."""
    torch.manual_seed(seed)
    model = build(network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
    images = Images(*normalised(data, "train", network.resolution, torch.device("cpu")))
    loader = DataLoader(images, recipe.batch_size, shuffle=True, drop_last=True, pin_memory=device.type == "cuda")
    optimizer, steps = optimizer_of(model, recipe), math.ceil(recipe.epochs * len(loader))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(recipe, step, steps))
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    model.train()
    while scheduler.last_epoch < steps:
        for x, y in loader:
            if scheduler.last_epoch == steps:
                break
            x = x.to(device, non_blocking=True, memory_format=torch.channels_last)
            with autocast:
                loss = criterion(model(x), y.to(device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    model.eval()
    right = 0
    with torch.inference_mode():
        for x, y in DataLoader(TensorDataset(*normalised(data, "val", network.resolution, device)), SCORED):
            right += int((model(x.to(memory_format=torch.channels_last)).argmax(1) == y).sum())
    return right / len(data.val_labels)


def batches(x: Tensor, y: Tensor, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch of whole batches from tensors in memory, half of each mirrored."""
    order = torch.randperm(len(x), device=x.device)
    for chosen in order[: len(x) // recipe.batch_size * recipe.batch_size].split(recipe.batch_size):
        images = x[chosen]
        yield torch.where(torch.rand(len(chosen), 1, 1, 1, device=x.device) < 0.5, images.flip(3), images), y[chosen]


def right_of(model: nn.Module, data: Data, side: int, device: torch.device) -> float:
    """The accuracy on the validation images."""
    x, y = normalised(data, "val", side, device)
    with torch.inference_mode():
        return float((torch.cat([model(part).argmax(1) for part in x.split(SCORED)]) == y).float().mean())


def expert(network: Network, recipe: Recipe, data: Data, seed: int, precision: str, device: torch.device) -> float:
    """What an expert writes: data in memory as one tensor, chance and augmentation by the batch, no objects a step."""
    torch.manual_seed(seed)
    model = build(network).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    x, y = normalised(data, "train", network.resolution, device)
    optimizer, steps, step = optimizer_of(model, recipe), recipe.num_steps(len(x)), 0
    while step < steps:
        for images, labels in batches(x, y, recipe):
            if step == steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * rate(recipe, step, steps)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                loss = F.cross_entropy(model(images).float(), labels, label_smoothing=recipe.label_smoothing)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
    return right_of(model.eval(), data, network.resolution, device)


def timm(network: Network, recipe: Recipe, data: Data, seed: int, precision: str, device: torch.device) -> float:
    """timm's loader with its batch normalisation, its optimizer, loss and scheduler, in the order of its train.py."""
    from PIL import Image
    from timm.data import create_loader
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler.poly_lr import PolyLRScheduler

    class Pictures(torch.utils.data.Dataset):  # type: ignore[type-arg]
        transform: Callable[[Image.Image], object]

        def __init__(self, images: Tensor, labels: Tensor) -> None:
            self.images, self.labels = images.squeeze(1).numpy(), labels.tolist()

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, index: int) -> tuple[object, int]:
            return self.transform(Image.fromarray(self.images[index])), self.labels[index]

    def loader(split: str, **more: object) -> object:
        pictures = Pictures(
            resized(data, split, side), data.train_labels if split == "train" else data.val_labels
        )  # resized beforehand: its transform then cuts nothing
        same = {"mean": data.mean, "std": data.std, "num_workers": 0, "persistent_workers": False}
        return create_loader(pictures, (1, side, side), device=device, **same, **more)

    torch.manual_seed(seed)
    side = network.resolution
    model = build(network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "color_jitter": None, "interpolation": "bilinear"}
    training = loader("train", batch_size=recipe.batch_size, is_training=True, hflip=0.5, **whole)
    optimizer = create_optimizer_v2(
        model, "sgd", lr=recipe.learning_rate, weight_decay=recipe.weight_decay, momentum=recipe.momentum
    )
    steps, step = math.ceil(recipe.epochs * len(training)), 0  # type: ignore[arg-type]
    risen = round(recipe.warmup * steps)
    scheduler = PolyLRScheduler(
        optimizer, steps - risen, power=1.0, warmup_t=risen, warmup_prefix=True, t_in_epochs=False
    )
    criterion = LabelSmoothingCrossEntropy(recipe.label_smoothing)
    model.train()
    while step < steps:
        for x, y in training:  # type: ignore[attr-defined]
            if step == steps:
                break
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                loss = criterion(model(x.contiguous(memory_format=torch.channels_last)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            scheduler.step_update(step)
    model.eval()
    right = 0
    with torch.inference_mode():
        for x, y in loader("val", batch_size=SCORED, is_training=False, crop_pct=1.0):  # type: ignore[attr-defined]
            right += int((model(x.contiguous(memory_format=torch.channels_last)).argmax(1) == y).sum())
    return right / len(data.val_labels)


def lightning(network: Network, recipe: Recipe, data: Data, seed: int, precision: str, device: torch.device) -> float:
    """Lightning's Trainer on the batches of the expert's loop."""
    import lightning as package

    class Module(package.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = build(network)

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return F.cross_entropy(self.model(batch[0]).float(), batch[1], label_smoothing=recipe.label_smoothing)

        def configure_optimizers(self) -> dict[str, object]:
            optimizer = optimizer_of(self.model, recipe)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(recipe, step, steps))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    class Batches:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return batches(x, y, recipe)

        def __len__(self) -> int:
            return len(x) // recipe.batch_size

    torch.manual_seed(seed)
    x, y = normalised(data, "train", network.resolution, device)
    steps = recipe.num_steps(len(x))
    module = Module().to(memory_format=torch.channels_last)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = package.Trainer(
        accelerator="cpu" if device.type == "cpu" else "gpu",
        max_steps=steps,
        max_epochs=-1,
        precision="bf16-mixed" if precision == "bfloat16" else "32-true",
        **quiet,
    )
    trainer.fit(module, Batches())
    return right_of(module.model.eval(), data, network.resolution, device)
