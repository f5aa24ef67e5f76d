"""On a GPU a step of EDBA waits for the device once. No GPU is needed to count: tensors are only said to be on one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from composer_edba.loading.batch import index_batch
from composer_edba.method.selector import SubsetSelector
from composer_edba.scoring import memory as score_memory
from composer_edba.scoring.forward import Scorer
from composer_edba.settings import checked
from composer_edba.train.models import build_model

GPU = torch.device("cuda", 0)
READS = {"tolist", "item", "cpu", "numpy", "nonzero", "masked_select", "unique"}
READS |= {"__bool__", "__float__", "__int__", "__index__", "__contains__"}


class OnGPU(torch.Tensor):
    """A tensor on the CPU that says it is on a GPU, as does whatever is computed from it."""


class CountWaits(TorchFunctionMode):
    """Writes down every call at which the host would wait for the GPU, and refuses to mix devices."""

    def __init__(self, model=None):
        super().__init__()
        self.waits = []
        tensors = [] if model is None else [*model.parameters(), *model.buffers()]
        self.resident = {tensor.data_ptr() for tensor in tensors}
        self.pinned = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        owner = getattr(func, "__self__", None)
        first = args[0] if args else None
        if name == "__get__" and isinstance(first, OnGPU) and owner in (torch.Tensor.device, torch.Tensor.is_cuda):
            return GPU if owner is torch.Tensor.device else True
        if name == "pin_memory":
            self.pinned.add(first.data_ptr())
            return first
        if name == "to":
            return self.to(func, args, kwargs)
        if name in ("__getitem__", "__setitem__") and isinstance(first, OnGPU):
            self.index(name, args)
        elif name in READS and isinstance(first, OnGPU):
            self.waits.append(name)
            return func(first.as_subclass(torch.Tensor), *args[1:], **kwargs)
        elif name != "__get__":
            self.check_devices(name, args)
        on_gpu = kwargs.get("device") == GPU
        if on_gpu:
            kwargs["device"] = "cpu"
        result = func(*args, **kwargs)
        return result.as_subclass(OnGPU) if on_gpu else result

    def to(self, func, args, kwargs):
        tensor, *rest = args
        if isinstance(tensor, OnGPU):
            if any(str(target) == "cpu" for target in [*rest, kwargs.get("device")]):
                self.waits.append("to cpu")
            return func(tensor, *[target for target in rest if target != GPU], **kwargs)
        if GPU not in rest and not any(isinstance(target, OnGPU) for target in rest):
            return func(*args, **kwargs)
        if not (kwargs.get("non_blocking") and tensor.data_ptr() in self.pinned):
            self.waits.append("to gpu")
        return tensor.clone().as_subclass(OnGPU)

    def index(self, name, args):
        indices = args[1] if isinstance(args[1], tuple) else (args[1],)
        tensors = [index for index in indices if isinstance(index, torch.Tensor)]
        for index in tensors:
            if index.ndim == 0 or index.dtype == torch.bool or not isinstance(index, OnGPU):
                self.waits.append(name)
        if name == "__setitem__" and tensors and not isinstance(args[2], torch.Tensor):
            self.waits.append(name)

    def check_devices(self, name, args):
        flat = [a for arg in args for a in (arg if isinstance(arg, (tuple, list)) else [arg])]
        tensors = [a for a in flat if isinstance(a, torch.Tensor) and a.data_ptr() not in self.resident]
        if any(isinstance(t, OnGPU) for t in tensors):
            assert all(isinstance(t, OnGPU) or t.ndim == 0 for t in tensors), f"{name} mixes devices"


def on_gpu(tensor):
    return tensor.as_subclass(OnGPU)


@pytest.mark.parametrize(
    ("wait", "expected"),
    [
        (lambda x: x.tolist(), ["tolist"]),
        (lambda x: x.sum().item(), ["item"]),
        (lambda x: bool((x > 0).all()), ["__bool__"]),
        (lambda x: float(x.sum()), ["__float__"]),
        (lambda x: x[x.argmin()], ["__getitem__"]),
        (lambda x: x[x > 0], ["__getitem__"]),
        (lambda x: x[torch.arange(2)], ["__getitem__"]),
        (lambda x: torch.arange(2).to(x.device), ["to gpu"]),
        (lambda x: torch.arange(2).to(x.device, non_blocking=True), ["to gpu"]),
        (lambda x: x.cpu(), ["cpu"]),
        (lambda x: x.to("cpu"), ["to cpu"]),
        (lambda x: torch.arange(2).pin_memory().to(x.device, non_blocking=True), []),
        (lambda x: (x + torch.ones((), device=x.device)).softmax(0)[1:].double(), []),
    ],
)
def test_the_counter_sees_what_would_wait(wait, expected):
    counter = CountWaits()
    x = on_gpu(torch.arange(4.0))
    with counter:
        wait(x)
    assert counter.waits == expected


def test_the_counter_refuses_to_mix_devices():
    with CountWaits(), pytest.raises(AssertionError, match="mixes devices"):
        on_gpu(torch.ones(3)) + torch.ones(3)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = build_model("resnet9", 10, width=4)

    def forward(self, batch):
        return self.net(batch[0])


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
@pytest.mark.parametrize("size_law", ["uniform", "power_set", 0.5])
@pytest.mark.parametrize(("criterion", "waits"), [("margin", 1), ("random", 2)])
def test_a_step_waits_for_the_gpu_once(monkeypatch, criterion, waits, size_law):
    monkeypatch.setattr(score_memory, "device_memory", lambda device: None)
    model = Classifier().train()
    settings = checked({"preset": "paper", "criterion": criterion, "subset_size_law": size_law})
    scorer, selector = Scorer(), SubsetSelector(settings)
    batch = [on_gpu(torch.randn(40, 3, 16, 16)), on_gpu(torch.randint(10, (40,)))]
    for step in range(3):
        counter = CountWaits(model)
        with counter:
            scores = scorer(model, batch, lambda outputs, part: F.cross_entropy(outputs, part[1]))
            selection = selector.select(
                scores.inner_products(), scores.model_metric, torch.Generator().manual_seed(step)
            )
        chosen = index_batch(batch, selection.indices, 40)
        assert len(chosen[0]) == len(selection.indices)
        if step > 0:  # the first one looks for the last layer and checks the loss
            assert len(counter.waits) == waits, counter.waits
    assert len(selection.indices) < 40
