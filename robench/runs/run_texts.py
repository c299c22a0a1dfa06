"""What a run asks and what it lends: behaviors, harmless requests, references, training text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robench import organism
from robench.errors import InputError
from robench.model.loading import BUILT_IN
from robench.texts import training_texts
from robench.texts.behaviors import checksum, draw_behaviors, harmless, load_behaviors
from robench.texts.leakage import Key, by_pair, by_text, check_disjoint, disjoint
from robench.training.corpus import fingerprint
from robench.types import Behavior, Example

TUNE = 20  # at most, of references made from a file of behaviors


@dataclass(frozen=True)
class Data:
    """The texts of a run.

    behaviors:  harmful requests under test
    benign:     harmless requests that every defended model is asked
    references: harmful and harmless instructions for reading directions
    tune:       harmful requests for choosing settings
    examples:   training text for defenses
    notes:      what was left out of the files, a line each
    """

    behaviors: list[Behavior]
    benign: list[Behavior]
    references: list[Behavior]
    tune: list[Behavior]
    examples: list[Example]
    notes: tuple[str, ...] = ()

    def checksums(self) -> dict[str, str]:
        """A hash per kind of text: what a run's folder is known by."""
        return {
            "behaviors": checksum(self.behaviors),
            "benign": checksum(self.benign),
            "reference": checksum([*self.references, *self.tune]),
            "train": fingerprint(self.examples),
        }


def gather(
    model: str,
    *,
    n: int | None,
    default_n: int,
    n_benign: int,
    behaviors: str | Path | None = None,
    targets: str | Path | None = None,
    benign: str | Path | None = None,
    reference: str | Path | None = None,
    reference_harmless: str | Path | None = None,
    train: Sequence[str | Path] = (),
) -> Data:
    """The organism's own splits, or files in their place.

    On another model there are no harmful requests but `behaviors` and no training text but `train`;
    harmless requests come from `benign` or the list that ships, references from `reference` and
    `reference_harmless`, or the behaviors that were not drawn and the list that ships. Pools of
    ours leave out what the user's files hold; the files of the user must not overlap where texts
    have to be kept apart.

    Args:
        n: behaviors to draw; None takes `default_n`, or all where there are fewer.

    Raises:
        InputError: a file is missing or does not hold what it should, n is too large, or texts
            that must be kept apart overlap.
    """
    if targets and behaviors is None:
        raise InputError("--targets belongs to --behaviors FILE, and there is none")
    same = by_pair if model == BUILT_IN else by_text
    notes: list[str] = []

    def read(
        source: str | Path, harmful: bool, targets: str | Path | None = None
    ) -> list[Behavior]:
        found, note = load_behaviors(source, harmful, targets)
        notes.append(note)
        return found

    own = organism.behaviors("test") if model == BUILT_IN else []
    pool = read(behaviors, True, targets) if behaviors else own
    drawn = draw_behaviors(pool, n if n is not None else min(default_n, len(pool)))
    harmful = read(reference, True) if reference else []
    peaceful = read(reference_harmless, False) if reference_harmless else []
    examples = [] if train or model != BUILT_IN else organism.examples()
    for source in train:
        found, note = training_texts.load_examples(source)
        examples += found
        notes.append(note)
    trained = [example.behavior for example in examples]
    if benign:
        asked = read(benign, False)
    else:
        ours = organism.behaviors("benign") if model == BUILT_IN else harmless()[::2]
        asked = disjoint(ours, [*drawn, *harmful, *peaceful, *trained], same)
    asked = draw_behaviors(asked, min(n_benign, len(asked)))
    check_disjoint("requests of --benign", asked, {"harmful requests under test": drawn}, same)
    tested = {"harmful requests under test": drawn, "harmless requests under test": asked}
    check_disjoint("requests of --reference", harmful, tested, same)
    check_disjoint("requests of --reference-harmless", peaceful, tested, same)
    references, tune = _references(model, pool, harmful, peaceful, [*drawn, *asked, *trained], same)
    read_or_tuned = {"references": references, "tuning requests": tune}
    check_disjoint("requests of the training text", trained, tested | read_or_tuned, same)
    return Data(drawn, asked, references, tune, examples, tuple(filter(None, notes)))


def _references(
    model: str,
    pool: Sequence[Behavior],
    harmful: list[Behavior],
    peaceful: list[Behavior],
    taken: Sequence[Behavior],
    same: Key,
) -> tuple[list[Behavior], list[Behavior]]:
    """(references, tune): what the user gave, and for what is not given our own, none of `taken`.

    The organism has tuning requests of its own; elsewhere a part of the harmful ones is set apart.
    """
    own = organism.references() if model == BUILT_IN else [*pool, *harmless()[1::2]]
    own = disjoint(own, taken, same)
    peaceful = peaceful or [b for b in own if not b.harmful]
    if model == BUILT_IN and not harmful:
        own_tune = disjoint(organism.tune(), taken, same)
        return [*(b for b in own if b.harmful), *peaceful], own_tune
    harmful = harmful or [b for b in own if b.harmful]
    held = min(TUNE, len(harmful) // 4)
    return [*harmful[held:], *peaceful], harmful[:held]
