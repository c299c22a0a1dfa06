"""Work in threads: its results, its errors, the modes of its caller."""

from functools import partial

import pytest
import torch

from robench.model.threads import map_in_threads


def test_an_error_in_a_thread_is_raised():
    def work(i: int) -> int:
        if i == 3:
            raise ZeroDivisionError
        return i * i

    assert map_in_threads(work, range(3), 2) == [0, 1, 4]
    with pytest.raises(ZeroDivisionError):
        map_in_threads(work, range(5), 2)


@pytest.mark.parametrize(
    "mode",
    [torch.no_grad, torch.enable_grad, torch.inference_mode, partial(torch.autocast, "cpu")],
)
def test_threads_have_the_modes_of_their_caller(mode):
    def modes(_: int = 0) -> list[bool]:
        cast = torch.is_autocast_enabled("cpu")
        return [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), cast]

    with mode():
        assert map_in_threads(modes, range(2), 2) == [modes(), modes()]
