"""Small models and data for the composition matrix: one setup for each kind of model that an algorithm applies to."""

import logging
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched; this makes an attempt fail at once

import torch
from composer.algorithms.low_precision_groupnorm import apply_low_precision_groupnorm
from composer.algorithms.low_precision_layernorm import apply_low_precision_layernorm
from composer.core import Precision
from composer.models import ComposerClassifier, HuggingFaceModel
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.datasets import FakeData
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.transforms import ToTensor
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

CLASSES, SIDE, SAMPLES, BATCH = 16, 12, 160, 40
VOCABULARY, LENGTH = 50, 16


def _image_net(norm=nn.BatchNorm2d):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        norm(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2),
        norm(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(16, CLASSES),
    )


class UnderAutocast(ComposerClassifier):
    """Runs under CPU autocast, which Composer's own precision contexts leave off on a CPU."""

    def forward(self, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(batch)


class HuggingFaceUnderAutocast(HuggingFaceModel):
    """The same for a Hugging Face model."""

    def forward(self, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(batch)


def _group_norm(channels):
    return nn.GroupNorm(4, channels)


def _image_data():
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    images = torch.randn(SAMPLES, 3, SIDE, SIDE, generator=generator) + labels.view(-1, 1, 1, 1) / CLASSES
    return TensorDataset(images, labels)


def _loader(data, **kwargs):
    return DataLoader(data, batch_size=BATCH, shuffle=True, **kwargs)


def images():
    """A small convolutional network with batch normalisation and dropout."""
    return ComposerClassifier(_image_net(), num_classes=CLASSES), _loader(_image_data())


def images_drop_last():
    """The same with whole batches only."""
    return ComposerClassifier(_image_net(), num_classes=CLASSES), _loader(_image_data(), drop_last=True)


def bottlenecks():
    """torchvision's ResNet with one Bottleneck a stage."""
    net = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=CLASSES, width_per_group=8)
    return ComposerClassifier(net, num_classes=CLASSES), _loader(_image_data())


def pictures():
    """A torchvision data set of PIL images, which algorithms with transforms need."""
    data = FakeData(SAMPLES, (3, SIDE, SIDE), CLASSES, transform=ToTensor())
    return ComposerClassifier(_image_net(), num_classes=CLASSES), _loader(data)


def group_norm_bf16():
    """Group normalisation after Composer's low-precision surgery, under CPU autocast."""
    model = UnderAutocast(_image_net(_group_norm), num_classes=CLASSES)
    apply_low_precision_groupnorm(model, Precision.AMP_BF16)
    return model, _loader(_image_data())


class Sentences(Dataset):
    """Dict samples of a Hugging Face model, with padding at the end.

    Args:
        labels: ``"sample"``: one label a sentence; ``"token"``: one a token, -100 where nothing is to be predicted.
        length: tokens in a sentence, padding included.
        vocabulary: number of tokens; 0 is padding.
    """

    def __init__(self, labels, length=LENGTH, vocabulary=VOCABULARY, samples=SAMPLES):
        generator = torch.Generator().manual_seed(4)
        self.input_ids = torch.randint(1, vocabulary, (samples, length), generator=generator)
        lengths = torch.randint(length // 2, length + 1, (samples, 1), generator=generator)
        self.attention_mask = (torch.arange(length) < lengths).long()
        self.input_ids *= self.attention_mask
        if labels == "sample":
            self.labels = self.input_ids[:, 0] % 3
        else:
            asked = (torch.rand(samples, length, generator=generator) < 0.4) & (self.attention_mask == 1)
            asked[:, 0] = True
            self.labels = torch.where(asked, self.input_ids, -100)

    def __len__(self):
        return len(self.input_ids)

    def __getitem__(self, index):
        return {
            "input_ids": self.input_ids[index],
            "attention_mask": self.attention_mask[index],
            "labels": self.labels[index],
        }


def bert_config(**kwargs):
    """A BERT of two layers and 16 features."""
    return BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
        attn_implementation="eager",
        **kwargs,
    )


def hugging_face(model, kind=HuggingFaceModel):
    """The model as a ComposerModel, without a tokenizer."""
    # Composer says on every construction without a tokenizer that the checkpoint will not hold one.
    logging.getLogger("composer.models.huggingface").setLevel(logging.ERROR)
    return kind(model)


def bert_classifier():
    """A BERT sentence classifier from a config."""
    model = BertForSequenceClassification(bert_config(num_labels=3))
    return hugging_face(model), _loader(Sentences("sample"))


def bert_tokens():
    """A BERT masked language model from a config; every tensor of a batch is (samples, tokens)."""
    # Untied, so that autograd's gradient of the last layer's weight is that of this layer alone.
    return hugging_face(BertForMaskedLM(bert_config(tie_word_embeddings=False))), _loader(Sentences("token"))


def bert_bf16():
    """A BERT classifier after Composer's low-precision surgery, under CPU autocast."""
    model = hugging_face(BertForSequenceClassification(bert_config(num_labels=3)), HuggingFaceUnderAutocast)
    apply_low_precision_layernorm(model, Precision.AMP_BF16)
    return model, _loader(Sentences("sample"))
