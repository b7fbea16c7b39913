"""Train the small vision transformer that ships inside the package, from scratch, on one CPU core.

Usage: python scripts/pretrain_vit.py --data FOLDER --out FOLDER --steps 4500 --seed 0

FOLDER holds mnist.npz, omniglot.npz and sign_digits.npz (keys x_train, y_train, x_test, y_test; uint8 grey images). Two
augmented views of each image go through the model; the loss is a cosine softmax over all classes (omniglot characters
turned by 90, 180 and 270 degrees count as classes of their own) plus a contrastive term between all views of a batch.
MNIST's labels are not used: each of its images is alike to its own views only. A base that was taught the ten digits
would leave a stream of digits nothing to learn. The weights kept are a moving average. scikit-learn's digits are never
trained on: they are read once, at the end, for the figures of the model card.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional
from transformers import ViTConfig, ViTModel

SIZE = 32
SOURCES = {"mnist": 0.45, "omniglot": 0.40, "sign_digits": 0.15}  # share of each batch
TURNED = "omniglot"  # the one source whose quarter turns are new classes: a turned 6 would be a 9
UNLABELLED = "mnist"  # the one source whose labels are not used: its images meet the contrastive term alone
IGNORED = -100  # label of an image that the softmax passes over
PHOTOS = "sign_digits"  # the one source of grey photographs: no ink to thicken, no box to cut out
MEAN, STD = 0.5, 0.5


@dataclass(frozen=True)
class Pool:
    """All training images, float32 [N, 1, SIZE, SIZE] in [0, 1], with labels over the union of all classes."""

    images: Tensor
    labels: Tensor
    kin: Tensor  # int64 [N]: images of one number are alike to the contrastive term
    boxes: Tensor  # of the ink, [N, 3]: centre x, centre y, half extent, in the [-1, 1] frame
    photo: Tensor  # bool [N]
    rows: dict[str, Tensor]
    classes: int


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist.npz, omniglot.npz, sign_digits.npz")
    parser.add_argument("--out", type=Path, required=True, help="folder for config.json and model.safetensors")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=64, help="images a step; each is seen in two views")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--contrast", type=float, default=0.5, help="weight of the supervised contrastive term")
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--init", type=float, default=0.08, help="standard deviation of the initial weights")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def resized(images: np.ndarray) -> Tensor:
    """Bring uint8 [N, H, W] to float32 [N, 1, SIZE, SIZE] in [0, 1]."""
    x = torch.from_numpy(images).float().div_(255).unsqueeze(1)
    return functional.interpolate(x, size=(SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)


def ink_boxes(images: Tensor) -> Tensor:
    """Find where the strokes are: [N, 3] of centre x, centre y and half the longer side, in the [-1, 1] frame."""
    ink = images.squeeze(1) > 0.25
    axis = torch.linspace(-1, 1, SIZE)
    low_high = []
    for along in (1, 2):  # columns (x) first
        present = ink.any(dim=along)
        low_high.append((torch.where(present, axis, 1.0).amin(1), torch.where(present, axis, -1.0).amax(1)))
    (x0, x1), (y0, y1) = low_high
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, torch.maximum(x1 - x0, y1 - y0).clamp_min(0.2) / 2], dim=1)


def read_pool(folder: Path) -> Pool:
    """Read the training split of every source and number the classes one after another."""
    images, labels, kin, boxes, photo, rows, first, start = [], [], [], [], [], {}, 0, 0
    for name in SOURCES:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as data:
            x, y = resized(data["x_train"]), torch.from_numpy(data["y_train"]).long()
        count, turns = int(y.max()) + 1, 4 if name == TURNED else 1
        for turn in range(turns):
            images.append(torch.rot90(x, turn, dims=(2, 3)))
            known = y + first + turn * count
            labels.append(torch.full_like(y, IGNORED) if name == UNLABELLED else known)
            kin.append(-1 - torch.arange(len(y)) if name == UNLABELLED else known)
            whole = torch.tensor([0.0, 0.0, 1.0]).expand(len(x), 3)
            boxes.append(whole if name == PHOTOS else ink_boxes(images[-1]))
            photo.append(torch.full((len(x),), name == PHOTOS))
        rows[name] = torch.arange(start, start + turns * len(x))
        first, start = first + turns * count, start + turns * len(x)
    return Pool(*(torch.cat(parts) for parts in (images, labels, kin, boxes, photo)), rows, first)


class Augment:
    """Random views of greyscale images; every draw comes from one generator, so a seed fixes them all.

    `strength` in [0, 1] scales every distortion: training starts mild, or it would take long to get going.
    """

    def __init__(self, rng: torch.Generator) -> None:
        self.rng, self.strength = rng, 1.0

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Draw uniformly from [low, high)."""
        return torch.rand(*shape, generator=self.rng) * (high - low) + low

    def around(self, reach: float, count: int) -> Tensor:
        """Draw uniformly from [-reach, reach), at full strength."""
        return self.uniform(-reach, reach, count) * self.strength

    def chance(self, probability: float, count: int) -> Tensor:
        """Draw a bool mask [count, 1, 1, 1]."""
        return (torch.rand(count, generator=self.rng) < probability).view(-1, 1, 1, 1)

    def warp(self, x: Tensor, boxes: Tensor, photo: Tensor) -> Tensor:
        """Turn, shear, stretch, zoom to between half and all of the frame, shift, and bend by a smooth displacement."""
        n = len(x)
        angle, shear, aspect = self.around(0.26, n), self.around(0.35, n), self.around(0.3, n)
        fill = torch.where(photo, 1.1 + self.around(0.25, n), 0.83 + self.around(0.28, n))
        zoom, cos, sin = boxes[:, 2] / fill, angle.cos(), angle.sin()
        wide, high = zoom * aspect.exp(), zoom * (-aspect).exp()
        centre = boxes[:, :2] + self.uniform(-0.12, 0.12, n, 2) * zoom[:, None]
        top = torch.stack([cos * wide, (shear * cos - sin) * high, centre[:, 0]], dim=1)
        low = torch.stack([sin * wide, (shear * sin + cos) * high, centre[:, 1]], dim=1)
        grid = functional.affine_grid(torch.stack([top, low], dim=1), [n, 1, SIZE, SIZE], align_corners=False)
        bend = torch.randn(n, 2, 5, 5, generator=self.rng) * (self.uniform(0.0, 0.10 * self.strength, n) * zoom).view(
            -1, 1, 1, 1
        )
        bend = functional.interpolate(bend, size=(SIZE, SIZE), mode="bicubic", align_corners=True)
        return functional.grid_sample(x, grid + bend.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)

    def stroke(self, x: Tensor, photo: Tensor) -> Tensor:
        """Make strokes thicker (maximum over neighbours) or thinner (minimum), by a random part of the way."""
        n = len(x)
        part = self.uniform(0.0, self.strength, n).view(-1, 1, 1, 1) * (~photo).view(-1, 1, 1, 1)
        thick = functional.max_pool2d(x, 3, stride=1, padding=1)
        thicker = functional.max_pool2d(thick, 3, stride=1, padding=1)
        thin = -functional.max_pool2d(-x, 3, stride=1, padding=1)
        pick = self.uniform(0.0, 1.0, n).view(-1, 1, 1, 1)
        aim = torch.where(pick < 0.3, thick, torch.where(pick < 0.45, thicker, x))
        aim = torch.where(pick > 0.85, 0.3 * x + 0.7 * thin, aim)
        return x + part * (aim - x)

    def coarse(self, x: Tensor, photo: Tensor) -> Tensor:
        """Average down to 8..24 pixels and up again (photographs half the way), in most chunks of the batch."""
        sizes = torch.tensor([8, 8, 9, 10, 12, 14, 16, 20, 24, SIZE, SIZE, SIZE])
        out = []
        for chunk in x.chunk(6):
            size = int(sizes[torch.randint(len(sizes), (1,), generator=self.rng)])
            small = functional.interpolate(chunk, size=(size, size), mode="bilinear", antialias=True)
            out.append(functional.interpolate(small, size=(SIZE, SIZE), mode="bilinear"))
        return torch.lerp(x, torch.cat(out), self.strength * (1 - 0.5 * photo.view(-1, 1, 1, 1).float()))

    def light(self, x: Tensor) -> Tensor:
        """White for the brightest pixel, then random gamma, black and white points, noise; one in eight inverted."""
        n = len(x)
        gamma, black, white = self.around(0.5, n).exp(), self.around(0.25, n) - 0.05, 1 + self.around(0.4, n)
        black, white, x = black.clamp_min(0), white.clamp_max(1), x / x.amax(dim=(1, 2, 3), keepdim=True).clamp_min(0.1)
        x = x.clamp(1e-4, 1).pow(gamma.view(-1, 1, 1, 1))
        x = black.view(-1, 1, 1, 1) + x * (white - black).view(-1, 1, 1, 1)
        x = x + torch.randn(x.shape, generator=self.rng) * self.uniform(-0.04, 0.04, n).clamp_min(0).view(-1, 1, 1, 1)
        return torch.where(self.chance(0.125 * self.strength, n), 1 - x, x).clamp(0, 1)

    def __call__(self, x: Tensor, boxes: Tensor, photo: Tensor) -> Tensor:
        """Return one random view of each image, same shape, in [0, 1]."""
        order = torch.randperm(len(x), generator=self.rng)  # the chunks of `coarse` must not follow the sources
        photo = photo[order]
        seen = self.light(self.coarse(self.stroke(self.warp(x[order], boxes[order], photo), photo), photo))
        return torch.empty_like(seen).index_copy_(0, order, seen)


class Learner(nn.Module):
    """The encoder that is kept, and the two heads that are thrown away."""

    def __init__(self, layers: int, classes: int, init: float) -> None:
        super().__init__()
        config = ViTConfig(
            image_size=SIZE,
            patch_size=8,
            hidden_size=128,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=512,
            initializer_range=init,
        )
        self.encoder = ViTModel(config, add_pooling_layer=False)
        self.rows = nn.Parameter(torch.randn(classes, config.hidden_size))
        self.scale = nn.Parameter(torch.tensor(math.log(16.0)))
        self.project = nn.Sequential(nn.Linear(config.hidden_size, 256), nn.GELU(), nn.Linear(256, 64))

    def features(self, x: Tensor) -> Tensor:
        """Map [N, 1, SIZE, SIZE] in [0, 1] to [N, 128]: the class token plus the mean of the patch tokens."""
        states = self.encoder(pixel_values=((x - MEAN) / STD).expand(-1, 3, -1, -1)).last_hidden_state
        return states[:, 0] + states[:, 1:].mean(dim=1)

    def loss(self, x: Tensor, labels: Tensor, kin: Tensor, contrast: float) -> Tensor:
        """Cosine softmax with label smoothing, plus the supervised contrastive term (Khosla et al. 2020, eq. 2)."""
        features = self.features(x)
        cosine = functional.normalize(features, dim=1) @ functional.normalize(self.rows, dim=1).T
        softmax = functional.cross_entropy(cosine * self.scale.exp().clamp(max=40.0), labels, label_smoothing=0.05)
        z = functional.normalize(self.project(features), dim=1)
        itself = torch.eye(len(z), dtype=torch.bool)
        log_p = functional.log_softmax((z @ z.T / 0.1).masked_fill(itself, -1e9), dim=1)
        same = (kin[:, None] == kin[None]) & ~itself
        return softmax - contrast * (log_p * same).sum(1).div(same.sum(1)).mean()


def batches(pool: Pool, size: int, steps: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Yield row numbers, each source in its share of the batch."""
    shares = {name: round(size * share) for name, share in SOURCES.items()}
    for _ in range(steps):
        picks = [rows[torch.randint(len(rows), (shares[name],), generator=rng)] for name, rows in pool.rows.items()]
        yield torch.cat(picks)


def optimizer_for(learner: Learner, lr: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    matrices = [p for p in learner.parameters() if p.ndim > 1]
    others = [p for p in learner.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)


def train(pool: Pool, options: argparse.Namespace) -> Learner:
    """Run the whole schedule (5 percent warm-up, cosine to 1 percent) and return the moving average."""
    torch.manual_seed(options.seed)  # the initial weights
    rng = torch.Generator().manual_seed(options.seed + 1)
    learner, augment = Learner(options.layers, pool.classes, options.init), Augment(rng)
    average = copy.deepcopy(learner).requires_grad_(False)
    optimizer, warm = optimizer_for(learner, options.lr), max(1, options.steps // 20)
    start, recent = time.perf_counter(), 0.0
    for step, rows in enumerate(batches(pool, options.batch, options.steps, rng)):
        late = max(0.0, (step - warm) / max(1, options.steps - warm))
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min((step + 1) / warm, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * late)))
        augment.strength = min(1.0, 0.2 + 2 * step / options.steps)
        twice = rows.repeat(2)
        views = augment(pool.images[twice], pool.boxes[twice], pool.photo[twice])
        loss = learner.loss(views, pool.labels[twice], pool.kin[twice], options.contrast)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        keep = min(options.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(learner.parameters()), 1 - keep)
        recent += loss.item() / 250
        if step % 250 == 249:
            rate = (step + 1) * 2 * options.batch / (time.perf_counter() - start)
            print(json.dumps({"step": step + 1, "loss": round(recent, 3), "views_per_s": round(rate)}), flush=True)
            recent = 0.0
    return average


@torch.no_grad()
def encoded(learner: Learner, images: np.ndarray) -> np.ndarray:
    """Features of uint8 [N, H, W] as [N, 128], each of length one."""
    x = resized(images)
    return torch.cat([functional.normalize(learner.features(part), dim=1) for part in x.split(256)]).numpy()


def judged(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> dict[str, float]:
    """Accuracy of the nearest class mean and of a logistic regression, both on the given features."""
    names = np.unique(train_y)
    means = np.stack([train_x[train_y == name].mean(0) for name in names])
    ncm = names[((test_x[:, None] - means[None]) ** 2).sum(-1).argmin(1)]
    probe = LogisticRegression(C=10.0, max_iter=500).fit(train_x, train_y)
    return {"ncm": round(float((ncm == test_y).mean()), 4), "probe": round(float(probe.score(test_x, test_y)), 4)}


def report(learner: Learner, folder: Path) -> dict[str, dict[str, float]]:
    """Judge the held-out images of each source, and scikit-learn's digits (1000 for the means, 797 for the test)."""
    figures = {}
    for name in SOURCES:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as data:
            x, y = encoded(learner, data["x_train"]), encoded(learner, data["x_test"])
            figures[name] = judged(x, data["y_train"], y, data["y_test"])
    flat, labels = load_digits(return_X_y=True)
    x = encoded(learner, (np.asarray(flat).reshape(-1, 8, 8) * 15.9375).astype(np.uint8))
    order, labels = np.random.default_rng(0).permutation(len(x)), np.asarray(labels)
    first, rest = order[:1000], order[1000:]
    figures["digits (never trained on)"] = judged(x[first], labels[first], x[rest], labels[rest])
    return figures


def save(learner: Learner, folder: Path) -> None:
    """Write config.json and model.safetensors (16-bit floats), and what an image processor needs to know."""
    learner.encoder.half().save_pretrained(folder)
    processor = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255, "resample": 2,
                 "size": {"height": SIZE, "width": SIZE}, "image_mean": [MEAN] * 3, "image_std": [STD] * 3,
                 "image_processor_type": "ViTImageProcessor"}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Train, judge, save."""
    options, start = arguments(), time.perf_counter()
    torch.set_num_threads(1)
    learner = train(read_pool(options.data), options)
    seconds = round(time.perf_counter() - start)
    learner.eval()
    print(json.dumps({"seconds": seconds, "figures": report(learner, options.data)}, indent=1), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    save(learner, options.out)


if __name__ == "__main__":
    main()
