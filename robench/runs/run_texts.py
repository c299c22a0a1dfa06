"""The texts of a run: what is under test, and what attacks read and defenses train on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from robench import organism
from robench.errors import InputError
from robench.methods.registry import Method
from robench.model.loading import BUILT_IN
from robench.results.schema import Known
from robench.runs.from_run import examples_of_run, is_run
from robench.runs.known import Ask, known_requests
from robench.runs.question import Texts
from robench.texts import geography, training_texts
from robench.texts.behaviors import (
    checksum,
    draw_behaviors,
    harmless,
    harmless_references,
    load_behaviors,
)
from robench.texts.leakage import Key, by_pair, by_text, check_disjoint, disjoint
from robench.texts.style import matched, style_warning
from robench.texts.training_texts import fingerprint
from robench.types import Behavior, Example

TUNE = 20  # at most, of references made from a file of behaviors


@dataclass(frozen=True)
class RunTexts:
    """The texts of a run.

    behaviors:  harmful requests under test
    benign:     harmless requests that every defended model is asked
    references: harmful and harmless instructions for reading directions
    tune:       harmful requests for choosing settings
    examples:   training text for defenses
    notes:      what was left out of the files, a line each
    known:      how many requests with answers a model knows; None where it was not asked
    """

    behaviors: list[Behavior]
    benign: list[Behavior]
    references: list[Behavior]
    tune: list[Behavior]
    examples: list[Example]
    notes: tuple[str, ...] = ()
    known: Known | None = None

    def checksums(self) -> dict[str, str]:
        """A hash per kind of text: what a run's folder is known by."""
        return {
            "behaviors": checksum(self.behaviors),
            "benign": checksum(self.benign),
            "reference": checksum([*self.references, *self.tune]),
            "train": fingerprint(self.examples),
        }


def with_companions(texts: Texts) -> Texts:
    """The files that a user names, and the other parts of a set that ships in the empty places."""
    split = geography.split_of(str(texts.behaviors))
    if not split:
        return texts
    probe = f"{geography.NAME}:probe"
    return replace(
        texts,
        benign=texts.benign or f"{geography.NAME}:{split}",
        reference=texts.reference or probe,
        reference_harmless=texts.reference_harmless or probe,
        train=texts.train or (geography.NAME,),
    )


def gather(model: str, texts: Texts, n: int, n_benign: int, ask: Ask | None = None) -> RunTexts:
    """The organism's own splits, or files in their place.

    On another model there are no harmful requests but `behaviors` and no training text but `train`;
    harmless requests come from `benign` or the list that ships, references from `reference` and
    `reference_harmless`, or the behaviors that were not drawn and the list that ships. Pools of
    ours leave out what the user's files hold; the files of the user must not overlap where texts
    have to be kept apart.

    Args:
        model: its name.
        texts: the files that the user names, and how many texts are wanted, if they say so.
        n, n_benign: how many to draw where they do not, or all where there are fewer.
        ask: the replies of the model whose right answers count; None: any request is kept.

    Raises:
        InputError: a file is missing or does not hold what it should, there are fewer texts than
            were asked for, or texts that must be kept apart overlap.
    """
    if texts.targets and texts.behaviors is None:
        raise InputError("--targets belongs to --behaviors FILE, and there is none")
    organism_asked = model == BUILT_IN
    same = by_pair if organism_asked else by_text
    given, notes = _read_all(texts)
    if ask:
        given = _known_alone(given, ask)
    pool = given.behaviors if texts.behaviors else []
    if not texts.behaviors and organism_asked:
        pool = organism.behaviors("test")
    drawn = draw_behaviors(pool, _size(texts.n, n, pool))
    examples = given.examples if texts.train or not organism_asked else organism.examples()
    trained = [example.behavior for example in examples]
    benign = given.benign
    if not texts.benign:
        ours = organism.behaviors("benign") if organism_asked else harmless()[::2]
        benign = disjoint(ours, [*drawn, *given.references, *trained], same)
    benign = draw_behaviors(benign, _size(texts.n_benign, n_benign, benign))
    taken = [*drawn, *benign, *trained]
    references, tune = _references(model, pool, given.references, taken, same)
    if not organism_asked:
        peaceful = [b for b in references if not b.harmful]
        warning = style_warning([b for b in references if b.harmful], peaceful)
        notes = (*notes, warning) if warning else notes
    complete = RunTexts(drawn, benign, references, tune, examples, notes, given.known)
    _check_apart(complete, given, same)
    return complete


def _known_alone(given: RunTexts, ask: Ask) -> RunTexts:
    """Of the requests under test those whose facts the model that is asked knows."""
    texts = [*given.behaviors, *given.benign]
    kept, known = known_requests(texts, ask)
    return replace(
        given,
        behaviors=[b for b in kept if b.harmful],
        benign=[b for b in kept if not b.harmful],
        known=known,
    )


def _size(asked: int | None, default: int, pool: Sequence[Behavior]) -> int:
    return min(default, len(pool)) if asked is None else asked


def _read_all(texts: Texts) -> tuple[RunTexts, tuple[str, ...]]:
    """What the user's files hold, and a line on what was left out of each."""
    notes: list[str] = []

    def read(
        source: str | Path | None, harmful: bool, targets: str | Path | None = None
    ) -> list[Behavior]:
        if source is None:
            return []
        behaviors, note = load_behaviors(source, harmful, targets)
        notes.append(note)
        return behaviors

    behaviors = read(texts.behaviors, True, texts.targets)
    harmful, peaceful = read(texts.reference, True), read(texts.reference_harmless, False)
    examples: list[Example] = []
    for source in texts.train:
        load = examples_of_run if is_run(source) else training_texts.load_examples
        more, note = load(source)
        examples += more
        notes.append(note)
    benign = read(texts.benign, False)
    return RunTexts(behaviors, benign, [*harmful, *peaceful], [], examples), tuple(
        filter(None, notes)
    )


def _check_apart(texts: RunTexts, given: RunTexts, same: Key) -> None:
    """That no text of the user's files is used for two things that must be kept apart."""
    tested = {
        "harmful requests under test": texts.behaviors,
        "harmless requests under test": texts.benign,
    }
    harmful = [b for b in given.references if b.harmful]
    peaceful = [b for b in given.references if not b.harmful]
    trained = [example.behavior for example in texts.examples]
    read_or_tuned = {"references": texts.references, "tuning requests": texts.tune}
    under_test = {"harmful requests under test": texts.behaviors}
    check_disjoint("requests of --benign", texts.benign, under_test, same)
    check_disjoint("requests of --reference", harmful, tested, same)
    check_disjoint("requests of --reference-harmless", peaceful, tested, same)
    check_disjoint("requests of the training text", trained, tested | read_or_tuned, same)


def _references(
    model: str,
    pool: Sequence[Behavior],
    given: Sequence[Behavior],
    taken: Sequence[Behavior],
    same: Key,
) -> tuple[list[Behavior], list[Behavior]]:
    """(references, tune): what the user gave, and for what is not given our own, none of `taken`.

    The organism has tuning requests of its own; elsewhere a part of the harmful ones is set apart.
    """
    harmful = [b for b in given if b.harmful]
    given_peaceful = [b for b in given if not b.harmful]
    own = organism.references() if model == BUILT_IN else [*pool, *harmless_references()]
    own = disjoint(own, taken, same)
    peaceful = given_peaceful or [b for b in own if not b.harmful]
    if model == BUILT_IN and not harmful:
        own_tune = disjoint(organism.tune(), taken, same)
        return [*(b for b in own if b.harmful), *peaceful], own_tune
    harmful = harmful or [b for b in own if b.harmful]
    held = min(TUNE, len(harmful) // 4)
    if model != BUILT_IN and not given_peaceful:
        peaceful = matched(harmful[held:], peaceful)
    return [*harmful[held:], *peaceful], harmful[:held]


def lacking(method: Method, texts: RunTexts) -> str:
    """Why a method cannot run on these texts, "" if it can."""
    options = {"examples": "--train", "references": "--reference", "tune": "--reference"}
    for need in getattr(method.instance, "needs", ()):
        if not getattr(texts, need):
            return f"needs {need}, and there are none: give {options[need]} FILE"
    return ""
