"""What can be damaged in a store, and what follows from it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.Enum):
    """What a record or file is to the studies that read it."""

    RESULT = "completion record", "after `repair`, `run` computes the stage again"
    OUTPUT = "output of a finished stage", "after `repair`, `run` computes the stage again"
    IDENTITY = "identity of a stage", "after `repair`, `run` writes it again"
    ARCHIVED = "archived result", "only an older result is lost"
    HISTORY = (
        "history of a stage",
        "only history is lost, results are whole; `run` moves it below damaged/",
    )
    CHECKPOINT = "checkpoint", "the next attempt goes on from the checkpoint before it"
    STATE = "state of a study", "the state before it stands for what was accepted"
    LEASE = (
        "lease of a driver",
        "its heartbeat says whether its driver lives; `repair` moves it away",
    )
    PREDICTION = "registered prediction", "after `repair`, it is not scored any more"
    TRIAL = "trial of a sweep", "after `repair`, the sweep goes on without this trial"
    WINNER = "winner of a sweep", "after `repair`, `run` decides again from the trials"
    ADOPTED = (
        "adopted encoder",
        "after `repair`, `adopt` it again from its source, under its name",
    )
    NAME = (
        "name of an adopted encoder",
        "after `repair`, `adopt` the encoder again under this name",
    )
    MODEL = "registered model", "after `repair`, `mlflow register` it again"
    FACTS = "facts of a data set", "`run` reads the images again"
    STORE = (
        "name of the store",
        "`run` gives the store another name; an MLflow server shows it as another store",
    )

    def __init__(self, text: str, follows: str) -> None:
        self.text = text
        self.follows = follows
        """What is lost, and what is done about it."""

    @property
    def is_computed_again(self) -> bool:
        """True if the stage has no result without it."""
        return self in (Kind.RESULT, Kind.OUTPUT)


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A record or file that is not what was written."""

    key: str
    """Where it is in the store."""
    kind: Kind
    problem: str
    stage: str = ""
    """Science hash, if it is of a stage."""
    addresses: tuple[str, ...] = ()
    """Of the stage in the studies that were run here: `STUDY/CELL#STAGE`."""
    apart: str = ""
    """What `repair` moves, if it is not the damaged file itself: the record that names it."""

    def to_json(self) -> dict[str, object]:
        """As plain values."""
        return {
            "key": self.key,
            "kind": self.kind.text,
            "problem": self.problem,
            "follows": self.kind.follows,
            "stage": self.stage,
            "addresses": list(self.addresses),
            "computed_again": self.kind.is_computed_again,
        }


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was compared, and what is damaged."""

    num_records: int = 0
    num_files: int = 0
    num_bytes: int = 0
    damages: tuple[Damage, ...] = ()
    not_verifiable: tuple[str, ...] = ()
    """Records of older versions, which bear no digest: only their form was checked."""
    stale: tuple[str, ...] = ()
    """Stages that were computed from outputs that their parents no longer have: `run` does them."""

    @property
    def computed_again(self) -> tuple[str, ...]:
        """Stages without a result, by address or else by hash."""
        lost = [d for d in self.damages if d.kind.is_computed_again]
        return tuple(dict.fromkeys(name for d in lost for name in d.addresses or (d.stage,)))
