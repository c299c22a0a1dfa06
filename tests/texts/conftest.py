"""Files of texts, and how wrong ones are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from robench.errors import InputError
from robench.texts.behaviors import load_behaviors


@pytest.fixture
def write(tmp_path) -> Callable[[str, str | bytes], Path]:
    """`write(name, content)`: a file of this name."""

    def write(name: str, content: str | bytes) -> Path:
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return write


@pytest.fixture
def check_refused(write) -> Callable[[str, str | bytes, str], None]:
    """`check_refused(name, content, message)`: the file is, in one line that begins with it."""

    def check(name: str, content: str | bytes, message: str) -> None:
        file = write(name, content)
        with pytest.raises(InputError) as error:
            load_behaviors(file)
        assert message in str(error.value)
        assert str(error.value).startswith(str(file))
        assert "\n" not in str(error.value)

    return check
