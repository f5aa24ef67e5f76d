import pickle

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from composer_edba.train.data import BatchTensorDataset, identity_collate


def dataset(samples: int = 25) -> BatchTensorDataset:
    labels = torch.arange(samples)
    return BatchTensorDataset(labels.view(-1, 1, 1, 1).expand(-1, 2, 3, 3).to(torch.uint8).contiguous(), labels)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: Subset(d, range(25))])
def test_loader_yields_every_sample_once_with_its_label(workers: int, wrap) -> None:
    loader = DataLoader(wrap(dataset()), batch_size=10, shuffle=True, num_workers=workers, collate_fn=identity_collate)
    batches = list(loader)
    assert [type(batch) for batch in batches] == [list] * 3
    assert [tuple(x.shape) for x, _ in batches] == [(10, 2, 3, 3), (10, 2, 3, 3), (5, 2, 3, 3)]
    labels = torch.cat([y for _, y in batches])
    images = torch.cat([x for x, _ in batches])
    assert torch.equal(labels.sort().values, torch.arange(25))
    assert not torch.equal(labels, torch.arange(25))
    assert torch.equal(images, dataset().inputs[labels])
    assert images.dtype == torch.uint8


def test_any_batch_sampler() -> None:
    loader = DataLoader(dataset(), batch_sampler=[[3, 1], [24], [7, 7, 0]], collate_fn=identity_collate)
    assert [y.tolist() for _, y in loader] == [[3, 1], [24], [7, 7, 0]]


def test_batches_are_copies() -> None:
    data = dataset()
    batch = data.__getitems__([4, 5])
    batch[0].zero_()
    assert data.inputs[5].eq(5).all()


def test_single_sample_and_length() -> None:
    data = dataset()
    x, y = data[4]
    assert len(data) == 25
    assert (x.shape, int(y)) == ((2, 3, 3), 4)


def test_subset_keeps_order_and_owns_its_memory() -> None:
    data = dataset()
    part = data.subset(torch.tensor([9, 2]))
    assert part.targets.tolist() == [9, 2]
    part.inputs.zero_()
    assert data.inputs[9].eq(9).all()


def test_pickles_for_spawned_workers() -> None:
    copy = pickle.loads(pickle.dumps(dataset()))
    assert torch.equal(copy.inputs, dataset().inputs)


def test_lengths_differ() -> None:
    with pytest.raises(ValueError, match="same length, not 3 and 2"):
        BatchTensorDataset(torch.zeros(3), torch.zeros(2))


def test_batches_lie_where_the_data_lies() -> None:
    dataset = BatchTensorDataset(torch.zeros(5, 2, device="meta"), torch.zeros(5, dtype=torch.int64, device="meta"))
    assert [tensor.device.type for tensor in dataset.__getitems__([0, 3])] == ["meta", "meta"]
