"""The pretended GPU refuses what CUDA refuses, and allows what CUDA allows."""

import pytest
import torch
from pretended_device import Misplaced, pretended_gpu
from torch import nn

HERE = torch.arange(4.0)


@pytest.fixture(autouse=True)
def gpu():
    with pretended_gpu():
        yield


@pytest.mark.parametrize(
    "meet",
    [
        lambda there: HERE + there,
        lambda there: torch.stack([HERE, there]),
        lambda there: torch.where(there > 1, HERE, there),
        lambda there: HERE[there.long()],
        lambda there: there.clone().__setitem__(slice(2), HERE[:2]),
        lambda there: HERE * there.sum(),  # a number on the GPU
        lambda there: torch.randn(4, device="cuda", generator=torch.Generator()),
        lambda there: there.uniform_(generator=torch.Generator()),
        lambda there: nn.Linear(4, 4)(there),
        lambda there: nn.Linear(4, 4).to("cuda")(HERE),
        lambda there: torch.nn.functional.mse_loss(there, target=HERE),
    ],
)
def test_refused(meet):
    with pytest.raises(Misplaced):
        meet(HERE.to("cuda"))


def test_numpy_wants_host_memory():
    there = HERE.to("cuda")
    with pytest.raises(TypeError, match="can't convert"):
        there.numpy()
    with pytest.raises(TypeError, match="can't convert"):
        torch.ones(2, device="cuda").__array__()
    assert there.cpu().numpy().tolist() == there.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda there: there + 1, "cuda"),
        (lambda there: there * torch.tensor(2.0), "cuda"),  # a number on the CPU
        (lambda there: there[torch.tensor([0, 1])], "cuda"),  # CPU indices
        (lambda there: HERE.to(there), "cuda"),
        (lambda there: there.to(torch.bfloat16), "cuda"),
        (lambda there: there.to("cpu", torch.float64), "cpu"),
        (lambda there: there.clone().copy_(HERE), "cuda"),
        (lambda there: there.max(0).values, "cuda"),
        (lambda there: there.split(2)[1], "cuda"),
        (lambda there: torch.zeros_like(there), "cuda"),
        (lambda there: torch.zeros(2, device=there.device), "cuda"),
        (lambda there: torch.zeros_like(there, device="cpu"), "cpu"),
        (lambda there: there.new_zeros(3), "cuda"),
        (lambda there: nn.Linear(4, 4).cuda().weight, "cuda"),
        (lambda there: nn.Linear(4, 4).cuda().cpu().weight, "cpu"),
    ],
)
def test_allowed(make, place):
    made = make(HERE.to("cuda"))
    assert made.device.type == place
    assert made.is_cuda is (place == "cuda")


def test_moving_copies():
    there = HERE.to("cuda")
    there += 1
    assert HERE.tolist() == [0, 1, 2, 3]
    assert there.to("cuda") is there


def test_gradients_reach_parameters():
    layer = nn.Linear(4, 1, bias=False).to("cuda", torch.bfloat16)
    assert isinstance(layer.weight, nn.Parameter) and layer.weight.is_leaf
    layer(torch.ones(2, 4, device="cuda", dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad.tolist() == [[2] * 4]
    assert layer.weight.grad.device.type == "cuda"
    torch.optim.SGD(layer.parameters(), lr=1.0).step()


def test_shared_parameters_stay_shared():
    pair = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    pair[1].weight = pair[0].weight
    pair.to("cuda")
    assert pair[1].weight is pair[0].weight
    assert isinstance(pair[0].weight, nn.Parameter)
    assert [name for name, _ in pair.named_parameters()] == ["0.weight"]
