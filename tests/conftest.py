"""What all tests share: one thread (tiny models are slower on many), and where real data is."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of published behavior files, templates and tokenizers, where there is one."""
    folder = os.environ.get("ROBENCH_TEST_DATA")
    if not folder:
        pytest.skip("ROBENCH_TEST_DATA is not set: no real data here")
    return Path(folder)
