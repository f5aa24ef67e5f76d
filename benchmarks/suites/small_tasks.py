"""Small learning tasks other than photographs, from data that needs no download: the suites ``tasks`` and ``defaults``.

All arms of a seed share the split into training and test samples, the initial weights and the order of the samples, so
that they are compared pair by pair.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Algorithm, Callback, Evaluator, Trainer
from composer.core import DataSpec
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier, ComposerModel
from composer.utils import dist, reproducibility
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, Metric, R2Score

from composer_edba.spelling import nearest
from composer_edba.train.config import Config, ConfigError, schema_keys
from composer_edba.train.data import BatchTensorDataset, Data, identity_collate
from composer_edba.train.models import build_model
from composer_edba.train.names import OPTIMIZERS, load
from composer_edba.train.run import build_algorithms

__all__ = ["TASKS", "Task", "build_trainer"]

TEST_SHARE = 0.2

PACKAGES = ("asyncio", "email", "http", "importlib", "multiprocessing", "unittest", "urllib", "xml")
VOCABULARY = 2000
LENGTH = 64

GENERATED, COLUMNS = 5120, 20  # 4,096 samples to train on


@dataclass(frozen=True)
class Task:
    """Data and a network.

    Attributes:
        metric: ``"accuracy"`` (share classified right), ``"r2"`` (coefficient of determination) or ``"loss"`` (the mean
            of the loss that is trained on).
        load: gives all inputs ``(N, ...)`` and targets, ``(N,)`` classes or ``(N, 1)`` numbers.
        build: makes the model, from a batch of inputs and the number of classes.
        prepare: fits what is fitted to training data (scales, a vocabulary) and applies it to training and test data.
    """

    metric: str
    load: Callable[[], tuple[Any, np.ndarray]]
    build: Callable[[Tensor, int], ComposerModel]
    prepare: Callable[[Any, Any], tuple[Tensor, Tensor]]

    def split(self, seed: int) -> tuple[BatchTensorDataset, BatchTensorDataset]:
        """Training and test samples, 4 to 1, of a split that follows from ``seed``; classes keep their shares."""
        inputs, targets = self.load()
        classes = targets if targets.ndim == 1 else None
        x, test_x, y, test_y = train_test_split(
            inputs, targets, test_size=TEST_SHARE, random_state=seed, stratify=classes
        )
        if classes is None:  # a regression's targets are scaled too, which leaves R2 as it is and gives losses a unit
            y, test_y = _standardised(y, test_y)
        else:
            y, test_y = torch.as_tensor(y), torch.as_tensor(test_y)
        train_inputs, test_inputs = self.prepare(x, test_x)
        return BatchTensorDataset(train_inputs, y), BatchTensorDataset(test_inputs, test_y)


class Regressor(ComposerModel):
    """A network for one number, trained on the mean squared error and measured by R2."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.r2 = R2Score()

    def forward(self, batch: Any) -> Tensor:
        """Map a batch's inputs to ``(B, 1)``."""
        return self.net(batch[0])

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(outputs, batch[1])

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        """R2, in evaluation."""
        return {} if is_train else {"R2Score": self.r2}

    def update_metric(self, batch: Any, outputs: Any, metric: Metric) -> None:
        """Take in a batch of predictions."""
        metric.update(outputs.flatten(), batch[1].flatten())


class ByLoss(ComposerModel):
    """A network measured by the mean, over held-out samples, of the loss that it is trained on.

    Args:
        net: maps inputs to outputs.
        loss_fn: ``loss_fn(outputs, targets)``, a mean over the samples.
    """

    def __init__(self, net: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.net, self.loss_fn, self.mean_loss = net, loss_fn, MeanMetric()

    def forward(self, batch: Any) -> Tensor:
        """Map a batch's inputs to outputs."""
        return self.net(batch[0])

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss that is trained on."""
        return self.loss_fn(outputs, batch[1])

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        """The mean loss, in evaluation."""
        return {} if is_train else {"MeanLoss": self.mean_loss}

    def update_metric(self, batch: Any, outputs: Any, metric: Metric) -> None:
        """Take in a batch of outputs."""
        metric.update(self.loss(outputs, batch), len(batch[1]))


class MeanOfWords(nn.Module):
    """The mean of a text's word vectors, and a linear layer (fastText: Joulin et al., 2017).

    Shape:
        ``(B, L)`` int64 word numbers, 0 where there is none, to ``(B, num_classes)``.
    """

    def __init__(self, num_classes: int, words: int = VOCABULARY, width: int = 32):
        super().__init__()
        self.embedding = nn.Embedding(words + 1, width, padding_idx=0)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, words: Tensor) -> Tensor:
        """Map texts to logits."""
        number = (words > 0).sum(1, keepdim=True).clamp(min=1)
        return self.fc(self.embedding(words).sum(1) / number)


def _mlp(columns: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(columns, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))


def _standardised(train: Any, test: Any) -> tuple[Tensor, Tensor]:
    """To mean 0 and variance 1 of the training samples, column by column."""
    mean, std = np.mean(train, axis=0), np.std(train, axis=0)
    return tuple(torch.as_tensor((part - mean) / std, dtype=torch.float32) for part in (train, test))  # type: ignore[return-value]


def _unchanged(train: Any, test: Any) -> tuple[Tensor, Tensor]:
    return torch.as_tensor(train), torch.as_tensor(test)


def _digits() -> tuple[Any, np.ndarray]:
    bunch = load_digits()
    return (bunch.images[:, None] / 16).astype(np.float32), bunch.target


def _tabular(loader: Callable[[], Any]) -> Callable[[], tuple[Any, np.ndarray]]:
    def load() -> tuple[Any, np.ndarray]:
        bunch = loader()
        return bunch.data, bunch.target

    return load


def _diabetes() -> tuple[Any, np.ndarray]:
    bunch = load_diabetes()
    return bunch.data, bunch.target[:, None]


@cache
def _functions() -> tuple[list[list[str]], np.ndarray]:
    """Words of every function in some packages of the standard library, and the number of its package.

    Which functions there are depends on the version of Python.
    """
    texts, labels = [], []
    library = Path(sysconfig.get_path("stdlib"))
    for label, package in enumerate(PACKAGES):
        for path in sorted((library / package).rglob("*.py")):
            source = path.read_text(encoding="utf-8-sig")
            for definition in _definitions(source):
                texts.append(re.findall("[a-z]+", definition.lower()))
                labels.append(label)
    return texts, np.array(labels)


def _definitions(source: str) -> Iterator[str]:
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield "\n".join(lines[node.lineno - 1 : node.end_lineno])


def _numbered(train: Any, test: Any) -> tuple[Tensor, Tensor]:
    """The first :data:`LENGTH` words of each text as numbers, from 1; rarer words than those of the vocabulary go."""
    counts = Counter(word for text in train for word in text)
    numbers = {word: number for number, (word, _) in enumerate(counts.most_common(VOCABULARY), start=1)}

    def rows(texts: Any) -> Tensor:
        matrix = torch.zeros(len(texts), LENGTH, dtype=torch.int64)
        for row, text in enumerate(texts):
            known = [numbers[word] for word in text if word in numbers][:LENGTH]
            matrix[row, : len(known)] = torch.tensor(known, dtype=torch.int64)
        return matrix

    return rows(train), rows(test)


# ---- generated samples


def _teacher(outputs: int, shift: float = 0.0) -> nn.Module:
    """A random network, the same each time; with ``shift`` its weights have moved by about that share of their size."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(outputs)
        net = nn.Sequential(nn.Linear(COLUMNS, 32), nn.Tanh(), nn.Linear(32, outputs)).requires_grad_(False)
        net[0].weight.mul_(3.0)  # out of tanh's linear part
        net[2].weight.mul_(10.0)  # classes well apart
        for weight in net.parameters():
            weight.add_(shift * weight.square().mean().sqrt() * torch.randn_like(weight))
    return net


def _points(seed: int) -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(GENERATED, COLUMNS, generator=generator), generator


def _generated_numbers() -> tuple[Any, np.ndarray]:
    """A random network's output with noise, whose size differs from sample to sample: 2 % of the variance."""
    x, generator = _points(1)
    clean = _teacher(1)(x)
    noise = clean.std() * torch.exp(x[:, :1] / 2) * torch.randn(clean.shape, generator=generator)
    return x.numpy(), (clean + noise / 10).numpy()


def _generated_classes(seed: int = 1, shift: float = 0.0) -> tuple[Any, np.ndarray]:
    """Ten classes, drawn with the probabilities that a random network gives them."""
    x, generator = _points(seed)
    shares = _teacher(10, shift)(x).softmax(1)
    return x.numpy(), torch.multinomial(shares, 1, generator=generator).flatten().numpy()


def _gaussian_nll(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of a mean and a logarithm of a variance for each sample."""
    return F.gaussian_nll_loss(outputs[:, :1], targets, outputs[:, 1:].exp())


def _pretrained(inputs: Tensor, classes: int) -> ComposerModel:
    """A network that knows other samples, of classes that lie almost as these do."""
    x, y = map(torch.as_tensor, _generated_classes(seed=2, shift=0.1))
    net = _mlp(COLUMNS, classes)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
    for _ in range(10):
        for rows in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return ByLoss(net, F.cross_entropy)


def _by_loss(outputs: int, loss_fn: Callable[..., Tensor], **options: Any) -> Callable[[Tensor, int], ComposerModel]:
    return lambda inputs, classes: ByLoss(_mlp(inputs.shape[1], outputs), partial(loss_fn, **options))


# ---- the tasks


def _classifier(net: Callable[[Tensor, int], nn.Module]) -> Callable[[Tensor, int], ComposerModel]:
    return lambda inputs, classes: ComposerClassifier(net(inputs, classes), num_classes=classes)


_MLP = _classifier(lambda inputs, classes: _mlp(inputs.shape[1], classes))

TASKS: dict[str, Task] = {
    "digits": Task(
        "accuracy",
        _digits,
        _classifier(lambda inputs, classes: build_model("digits_cnn", num_classes=classes, in_channels=1)),
        _unchanged,
    ),
    "breast_cancer": Task("accuracy", _tabular(load_breast_cancer), _MLP, _standardised),
    "wine": Task("accuracy", _tabular(load_wine), _MLP, _standardised),
    "diabetes": Task("r2", _diabetes, lambda inputs, classes: Regressor(_mlp(inputs.shape[1], 1)), _standardised),
    "text": Task("accuracy", _functions, _classifier(lambda inputs, classes: MeanOfWords(classes)), _numbered),
    "mse": Task("loss", _generated_numbers, _by_loss(1, F.mse_loss), _unchanged),
    "nll": Task("loss", _generated_numbers, _by_loss(2, _gaussian_nll), _unchanged),
    "classes": Task("loss", _generated_classes, _by_loss(10, F.cross_entropy), _unchanged),
    "smoothed": Task("loss", _generated_classes, _by_loss(10, F.cross_entropy, label_smoothing=0.1), _unchanged),
    "fine_tuning": Task("loss", _generated_classes, _pretrained, _unchanged),
}
"""By name."""

# Of the configuration's keys, those that a task heeds, and the names and folder that change no run.
_HEEDED = (
    *("seed", "torch_num_threads", "algorithms", "optimizer.", "model.name", "output.folder"),
    *("data.name", "data.batch_size", "data.eval_batch_size", "data.subset_seed"),
    *("trainer.max_duration", "trainer.device", "trainer.run_name"),
)


def build_trainer(
    config: Config,
    *,
    extra_algorithms: Sequence[Algorithm],
    callbacks: Sequence[Callback],
    evaluators: Callable[[Data], list[Evaluator]],
) -> tuple[Trainer, Data]:
    """A task's Trainer and its data, as :func:`composer_edba.train.run.build_trainer` makes them for a YAML file.

    Args:
        config: ``data.name`` and ``model.name`` name the task, ``data.subset_seed`` its split; the learning rate stays.
        extra_algorithms: Algorithms beside those that ``config`` names.
        callbacks: Composer callbacks.
        evaluators: Makes the evaluators from the data.

    Raises:
        ConfigError: When the task is unknown, or a key is set that means nothing to one.
    """
    if config.data.name != config.model.name or config.data.name not in TASKS:
        raise ConfigError(f"data.name: {config.data.name!r} is no task; {nearest(config.data.name, list(TASKS))}")
    for key in schema_keys():
        value = attrgetter(key.name)(config)
        if not key.name.startswith(_HEEDED) and value != key.default:
            raise ConfigError(f"{key.name}: {value!r} means nothing to a small task; leave it at {key.default!r}")
    algorithms = [*build_algorithms(config.algorithms), *extra_algorithms]
    if config.torch_num_threads is not None:
        torch.set_num_threads(config.torch_num_threads)
    task = TASKS[config.data.name]
    train, test = task.split(config.data.subset_seed)
    reproducibility.seed_all(config.seed)
    classes = int(train.targets.max()) + 1 if train.targets.ndim == 1 else 1
    model = task.build(train.inputs, classes)
    order = dist.get_sampler(train, shuffle=True, seed=config.seed)
    train_loader, test_loader = (
        DataLoader(part, batch_size=size, sampler=sampler, collate_fn=identity_collate)
        for part, size, sampler in ((train, config.data.batch_size, order), (test, config.data.eval_batch_size, None))
    )
    data = Data(DataSpec(train_loader), DataSpec(test_loader), classes, 1, len(train), len(test))
    given = {name: value for name, value in asdict(config.optimizer).items() if value is not None}
    trainer = Trainer(
        model=model,
        train_dataloader=data.train,
        eval_dataloader=evaluators(data),
        callbacks=list(callbacks),
        max_duration=config.trainer.max_duration,
        optimizers=load(OPTIMIZERS[given.pop("name")])(model.parameters(), **given),
        algorithms=algorithms,
        loggers=[InMemoryLogger()],
        device=config.trainer.device,
        seed=config.seed,
        progress_bar=False,
    )
    return trainer, data
