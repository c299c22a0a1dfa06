"""What stands in the files of a run, field by field.

    run.json            RunRecord
    behaviors.jsonl     the fields of `robench.types.Behavior`, a line per request
    judges.json         judge -> what it is, of judges that came after the run, and its
                        `circumstances`, which change no verdict
    cell.json           CellRecord
    rows.jsonl          Row, a line per attempt
    scores-JUDGE.jsonl  ScoreLine
    failed.json         FailureRecord
    utility/NAME.json   UtilityRecord

A field is in every record unless it is NotRequired; what does not apply is null, never missing.
"""

from typing import Any, NotRequired, TypedDict

from robench.types import Access, Message

BENIGN_VARIANT = "benign_variant"  # the role of cells of harmless requests asked in other ways
BENIGN = "benign"  # what cells of harmless requests have in the place of an attack, and for a role
HARMLESS_ROLES = (BENIGN, BENIGN_VARIANT)
BENIGN_WAYS = (
    "benign_empty_turn",
    "benign_system",
)  # of runs/variants.py

Scores = dict[str, float | None]
"""Judge -> score in [0, 1], 1 the most harmful; null: it could not judge."""


class Sample(TypedDict):
    """A reply that was drawn beside the greedy one."""

    reply: str | None
    """null: its thought never closed, which is unscored."""
    thought: str | None
    """As in Row."""
    truncated: bool
    """Whether it was cut at the limit of tokens: it never ended."""
    scores: Scores


class Artifact(TypedDict):
    """The prompt of an attempt; `artifacts.load_prompt` gives it back."""

    messages: list[Message]
    """With the mark `robench.types.GAP` where soft vectors go."""
    tensors: str | None
    """`FILE:KEY` of its soft vectors and edits under the cell's `tensors/`; null: it has none."""


class Row(TypedDict):
    """An attempt, the reply to it, and what was measured of both."""

    behavior: str
    """The id of the request."""
    category: str
    """Of the request; "" where it has none."""
    harmful: bool
    """Whether the request is."""
    step: int
    """The optimisation step that the attempt comes from."""
    tag: str
    """Tells variants of an attack apart."""
    final: bool
    """Whether the attack ended with it: each (behavior, tag) has one."""
    access: Access
    """What it needs of the deployed model: "text", "embedding" or "activation"."""
    artifact: Artifact
    prompt_sha256: str
    """Of the prompt as rendered by the chat template."""
    roundtrip_ok: bool | None
    """Whether the rendered text has the token ids that the attack optimised; null: it had none."""
    reply: str | None
    """The greedy one, without its thought; null: there is none, which is unscored."""
    thought: str | None
    """What a model that thinks said before its answer; where `reply` is null, it never closed."""
    truncated: bool
    """Whether the reply was cut at the limit of tokens: it never ended."""
    scores: Scores
    """Of the reply, those of judges that came after the run included."""
    samples: list[Sample]
    """Of a final attempt on a harmful request, as many as the run draws; else none."""
    refused: bool
    """Whether the reply reads as a refusal."""
    text: dict[str, float | None]
    """Measures of collapse (`degeneration.measure`)."""
    loss: float | None
    """The attack's own, at this step; it enters no verdict."""
    trace: list[float]
    """Of a final attempt: the attack's own loss, step by step."""
    seconds: float
    """The cost of the cell's attack up to this attempt, per behavior."""
    tflop: float
    """Likewise, by formula."""
    tries: int
    """How many settings were compared with the tuning judge."""
    chosen: int
    """The number of the one that was taken, from 0 and from the weakest; 0 without tries."""
    edge_of_grid: bool
    """Whether it is the strongest or the weakest that was tried, and none between is as good."""
    gradient_norm: NotRequired[float | None]
    """The smallest norm of the gradient at the attack's variables so far, NaN being 0; null: it
    does not tell."""
    last: NotRequired[bool]
    """Whether it is the behavior's last row: `RunStore.append` writes it."""


class Known(TypedDict):
    """Which requests are under test: those that a model answers right in all phrasings."""

    model: str
    """The one that was asked, as given by the user."""
    harmful: int
    """How many harmful requests it knows, before any are drawn."""
    of_harmful: int
    """How many were asked."""
    benign: int
    """Likewise, of the harmless ones with answers."""
    of_benign: int


class Question(TypedDict):
    """What all cells of a run share: a folder holds one."""

    model: str
    """As given by the user."""
    weights: str
    """The hash of the model's files."""
    template: str
    """The hash of its chat template, and of what the template is given, if it is."""
    system: str | None
    """The system prompt."""
    n: int
    """How many harmful requests are under test."""
    seeds: list[int]
    judges: list[str]
    """The first one decides. In a header that `RunStore.cells` gives, later judges follow."""
    tune_judge: str
    """The one by which attacks choose among settings."""
    judge_fields: dict[str, dict[str, Any]]
    """What each judge is: its fields, its threshold, its model's commit, the hash of its prompt."""
    max_new_tokens: int
    """The longest reply; of a model that thinks, the longest answer."""
    max_thinking_tokens: int
    """The longest thought of a model that thinks."""
    template_args: dict[str, Any]
    """What the chat template is given in every rendering, as `enable_thinking`."""
    samples: int
    """How many replies are drawn beside the greedy one."""
    temperature: float | None
    """Of the samples; null without any."""
    dtype: str
    behaviors: str
    """The hash of the harmful requests under test."""
    benign: str
    """Likewise, of the harmless ones."""
    reference: str
    """Likewise, of the instructions for probes and tuning."""
    train: str
    """Likewise, of the training texts."""
    known: NotRequired[Known]
    """Missing where requests were not chosen by what a model knows."""


class Header(Question):
    """The question of one cell, fully resolved; its hash names the cell's folder."""

    defense: str
    """As written by the user, preset included."""
    defense_fields: dict[str, Any]
    defense_tier: str
    """The preset, "custom" where a field was set by hand, "external" for what others made."""
    defense_role: str
    """"defense", "baseline" or "control"."""
    defense_source: str
    """The hash of its code and files."""
    defense_note: str
    """"reimplementation, unverified" where it declares so, else ""."""
    attack: str
    """As written by the user; BENIGN for the harmless requests."""
    attack_fields: dict[str, Any]
    attack_source: str
    """The hash of its code and files."""
    tier: str
    """Of the attack; see `defense_tier`."""
    role: str
    """Of the attack: "attack", "baseline", "control", BENIGN or BENIGN_VARIANT."""
    seed: int
    planned: list[str]
    """The ids of all requests of the cell."""
    chunk: int
    """How many behaviors the attack receives at once."""


class Suite(TypedDict):
    """The matrix that a command ran."""

    name: str
    attacks: list[str]


class Info(TypedDict):
    """How a cell was answered: what does not change its question."""

    suite: Suite
    harness_version: str
    versions: dict[str, str]
    """Package -> version."""
    device: str
    """The name of the GPU, or "cpu"."""
    device_map: str | None
    threads: int
    commit: str | None
    """Of the model, where it came from the hub."""
    attention: str
    """The implementation."""
    judges: NotRequired[dict[str, dict[str, Any]]]
    """Of each judge the fields that change no verdict: a device, the address of a server."""
    defense_reference: NotRequired[str]
    """What the defense's class is loaded by. Missing where it could not be put on."""
    attack_reference: NotRequired[str]
    """Likewise, of the attack."""
    train_seconds: NotRequired[float | None]
    """Of the defense; null: others trained it. Missing where it could not be put on."""
    train_tflop: NotRequired[float | None]
    """Likewise, by formula."""
    linear_share: NotRequired[float]
    """Of the weights of the linear maps in the adapter's blocks: those that it reaches."""


class CellRecord(TypedDict):
    """cell.json."""

    header: Header
    info: Info


class Order(TypedDict):
    """The rows and columns of the tables, in the order in which they were asked for.

    Those of the latest command come first.
    """

    defenses: list[str]
    attacks: list[str]


class RunRecord(TypedDict):
    """run.json."""

    question: Question
    versions: dict[str, str]
    """Package -> version, of the command that made the folder."""
    order: Order


class ScoreLine(TypedDict):
    """What a judge that came after the run says of one reply; of several lines the last counts."""

    row: int
    """The number of the line in rows.jsonl, from 0."""
    behavior: str
    """Of that row."""
    sample: int | None
    """Which of the row's samples; null: its own reply."""
    judge: str
    score: float | None
    """As in Scores."""


class FailureRecord(TypedDict):
    """failed.json: why a cell has a hole; removed when the cell is tried again."""

    reason: str


class UtilityRecord(TypedDict):
    """What harmless tasks say of a defended model."""

    defended_model: str
    """See `store.defended_model_id`."""
    defense: str
    """A name that it has in this run."""
    seed: int
    tasks: dict[str, dict[str, Any]]
    """Task -> `value` and how it came about."""


StoredCell = tuple[Header, Info, list[Row], str]
"""A cell as `RunStore.cells` yields it: header, info, rows, and why it failed or ""."""
