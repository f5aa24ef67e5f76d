"""Small models and data of many kinds: what a batch looks like, and what its loss is a mean over."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from composer.models import ComposerModel
from sklearn import datasets
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from composer_edba.loading.batch import batch_size, index_batch
from tests.composer.composition import setups
from tests.composer.composition.setups import LENGTH, VOCABULARY, Sentences, bert_config

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class Task:
    """A model, its data, and where its last layer is.

    Attributes:
        make: gives the model and the data set; the model is deterministic and treats samples independently.
        layer: name of the last layer in the model.
        split: how a batch is cut into microbatches, where Composer cannot; as in its DataSpec.
        positions: the positions of each sample that count in the loss, from a batch; None: the samples themselves.
    """

    make: Callable[[], tuple[ComposerModel, Dataset]]
    layer: str
    positions: Callable[[Any], Tensor] | None = None
    split: Callable[[Any, int], list[Any]] | None = None


class Net(ComposerModel):
    """A network with its loss; ``inputs`` and ``target`` say where they are in the batch."""

    def __init__(self, net, loss, target=lambda batch: batch[1], inputs=lambda batch: batch[0]):
        super().__init__()
        self.net, self.given_loss, self.target, self.inputs = net, loss, target, inputs

    def forward(self, batch):
        return self.net(self.inputs(batch))

    def loss(self, outputs, batch):
        return self.given_loss(outputs, self.target(batch))


def _mlp(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 12), nn.ReLU(), nn.Linear(12, outputs))


def _scaled(values):
    tensor = torch.as_tensor(values, dtype=torch.float32)
    return (tensor - tensor.mean(0)) / tensor.std(0)


def tabular():
    """scikit-learn's wine: 13 columns, 3 kinds."""
    data = datasets.load_wine()
    return Net(_mlp(13, 3), nn.CrossEntropyLoss()), TensorDataset(_scaled(data.data), torch.tensor(data.target))


def regression():
    """scikit-learn's diabetes: 10 columns, one number."""
    data = datasets.load_diabetes()
    target = _scaled(data.target[:160, None])
    return Net(_mlp(10, 1), nn.MSELoss()), TensorDataset(_scaled(data.data[:160]), target)


def robust_regression():
    """The same with a loss that is linear far out, and a target of shape (B,)."""
    data = datasets.load_diabetes()
    target = _scaled(data.target[:160])
    return (
        Net(nn.Sequential(_mlp(10, 1), nn.Flatten(0)), nn.HuberLoss()),
        TensorDataset(_scaled(data.data[:160]), target),
    )


def multi_label():
    """scikit-learn's generated multi-label data: any of 5 labels at once."""
    x, y = datasets.make_multilabel_classification(160, n_features=10, n_classes=5, random_state=0)
    return Net(_mlp(10, 5), nn.BCEWithLogitsLoss()), TensorDataset(_scaled(x), torch.tensor(y, dtype=torch.float32))


class TwoTowers(nn.Module):
    """An image and a row of numbers, joined before the last layer."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 3)  # registered first, called last
        self.image = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.row = nn.Linear(6, 8)

    def forward(self, inputs):
        image, row = inputs
        return self.head(torch.cat([self.image(image), self.row(row).tanh()], 1))


class ImagesWithRows(Dataset):
    """Nested samples: ((image, row), label)."""

    def __init__(self):
        self.images, self.rows = torch.randn(160, 1, 8, 8), torch.randn(160, 6)
        self.labels = (self.rows[:, 0] > 0).long() + (self.images.mean((1, 2, 3)) > 0).long()

    def __len__(self):
        return 160

    def __getitem__(self, index):
        return (self.images[index], self.rows[index]), self.labels[index]


def nested_inputs():
    """Two inputs of different shapes in a nested batch, [[images, rows], labels]."""
    return Net(TwoTowers(), nn.CrossEntropyLoss()), ImagesWithRows()


class NamedImagesWithRows(ImagesWithRows):
    """The same as dicts, with the names of the samples beside the tensors."""

    def __getitem__(self, index):
        (image, row), label = super().__getitem__(index)
        return {"image": image, "row": row, "name": f"sample {index}", "target": label}


def named_inputs():
    """Two inputs of different shapes, and strings, in a dict batch."""
    net = Net(
        TwoTowers(), nn.CrossEntropyLoss(), lambda batch: batch["target"], lambda batch: (batch["image"], batch["row"])
    )
    return net, NamedImagesWithRows()


def _split_nested(batch, size):
    total = batch_size(batch)
    return [index_batch(batch, slice(start, start + size), total) for start in range(0, total, size)]


IGNORED = 255


class Upsampled(nn.Module):
    """A segmentation net whose 1x1 convolution predicts at half the size; what follows it belongs to the loss."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, images):
        return nn.functional.interpolate(self.head(self.body(images)), scale_factor=2, mode="bilinear")


def _pixels():
    images = torch.randn(120, 3, 8, 8)
    labels = images.argmax(1)
    return TensorDataset(images, torch.where(torch.rand(120, 8, 8) < 0.3, IGNORED, labels))


def segmentation():
    """A 1x1 convolution as head; some pixels do not count."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    return Net(net, nn.CrossEntropyLoss(ignore_index=IGNORED)), _pixels()


def upsampled_segmentation():
    """The same with a bilinear interpolation after the head."""
    return Net(Upsampled(), nn.CrossEntropyLoss(ignore_index=IGNORED)), _pixels()


def sentence_classifier():
    """BERT: a dict batch, a ModelOutput that holds the loss."""
    return setups.hugging_face(BertForSequenceClassification(bert_config(num_labels=3, **NO_DROPOUT))), Sentences(
        "sample"
    )


def sentence_classifier_tuples():
    """The same model giving plain tuples."""
    config = bert_config(num_labels=3, return_dict=False, **NO_DROPOUT)
    return setups.hugging_face(BertForSequenceClassification(config)), Sentences("sample")


def token_classifier():
    """BERT: a label for some of the tokens."""
    config = bert_config(num_labels=VOCABULARY, **NO_DROPOUT)
    return setups.hugging_face(BertForTokenClassification(config)), Sentences("token")


def masked_language_model():
    """BERT: the head is as wide as the vocabulary."""
    config = bert_config(tie_word_embeddings=False, **NO_DROPOUT)
    return setups.hugging_face(BertForMaskedLM(config)), Sentences("token")


def causal_language_model():
    """GPT-2: labels are shifted by one token inside of the loss; the head has no bias."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=16,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    return setups.hugging_face(GPT2LMHeadModel(config)), Sentences("token")


def _labelled(batch):
    return batch["labels"] != -100


def _labelled_after_the_first(batch):
    return batch["labels"][:, 1:] != -100


def _labelled_pixels(batch):
    return batch[1] != IGNORED


TASKS = {
    "tabular": Task(tabular, "net.2"),
    "regression": Task(regression, "net.2"),
    "robust_regression": Task(robust_regression, "net.0.2"),
    "multi_label": Task(multi_label, "net.2"),
    "nested_inputs": Task(nested_inputs, "net.head", split=_split_nested),
    "named_inputs": Task(named_inputs, "net.head"),
    "segmentation": Task(segmentation, "net.2", _labelled_pixels),
    "upsampled_segmentation": Task(upsampled_segmentation, "net.head", _labelled_pixels),
    "sentence_classifier": Task(sentence_classifier, "model.classifier"),
    "sentence_classifier_tuples": Task(sentence_classifier_tuples, "model.classifier"),
    "token_classifier": Task(token_classifier, "model.classifier", _labelled),
    "masked_language_model": Task(masked_language_model, "model.cls.predictions.decoder", _labelled),
    "causal_language_model": Task(causal_language_model, "model.lm_head", _labelled_after_the_first),
}
