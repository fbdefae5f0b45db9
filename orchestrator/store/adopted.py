"""Encoders that others trained, as the store keeps them: found by name or digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mae_core.config import AdoptedRecipe, EncoderConfig
from orchestrator.errors import DamagedRecord
from orchestrator.store.known_keys import build_known
from orchestrator.store.records import Records
from studies.errors import StudyError, unknown
from studies.spec.cell import Stage
from studies.spec.study import Study

KIND = "adopted"
ROUNDING = 1e-3
"""Difference at which two means of pixels are the same numbers."""
MIN_PREFIX = 8
"""Hex digits of a digest that name an adopted encoder, at least."""


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """An imported encoder, in the store."""

    sha256: str
    """Of its tensors and shape, whatever file they came in."""
    folder: Path
    """Where its files are."""
    record: dict[str, Any]
    """What `record.json` says: source, layout, sizes, files, every decision."""

    def __post_init__(self) -> None:
        """Check what is read by name; raises `DamagedRecord`."""
        read = build_known(_Read, self.record, f"record {adopted_key(self.sha256)}/record.json")
        if read.sha256 != self.sha256:
            raise DamagedRecord(f"the record in {self.folder.parent} is of {read.sha256}")

    def key(self, file: str) -> str:
        """Where the store keeps one of its files."""
        return f"{adopted_key(self.sha256)}/files/{file}"

    @property
    def encoder(self) -> EncoderConfig:
        """Shape of the encoder."""
        return EncoderConfig(**self.record["encoder"])


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What no tensor shows: said by whoever adopted it, so that each name keeps its own."""

    norm_pix_loss: bool | None = None
    mask_ratio: float | None = None
    pixel_mean: Sequence[float] | None = None
    pixel_std: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class _Name(_Said):
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _Read(_Said):
    """What is read by name of `record.json`."""

    sha256: str
    source: str
    layout: str
    encoder: EncoderConfig
    decoder: Mapping[str, Any] | None = None
    num_classes: int | None = None
    image_size: int
    num_channels: int
    files: Mapping[str, str]
    notes: Sequence[str] = ()
    left_out: Sequence[str] = ()
    left_out_of_the_pickle: Sequence[str] = ()
    mapping: Mapping[str, Sequence[str]] = field(default_factory=dict)


FACTS = tuple(one.name for one in fields(_Said))


def find_adopted(records: Records, reference: str) -> Adopted:
    """Look an encoder up by its name or digest (8 hex digits or more).

    Raises `StudyError` that names the nearest known one.
    """
    name = _name(records, reference)
    sha256 = name.sha256 if name else _complete(records, reference)
    record = records.store.read_json(f"{adopted_key(sha256)}/record.json")
    if record is None:
        raise unknown("adopted encoder", reference, adopted_names(records), where="the store")
    said = {key: value for key in FACTS if (value := getattr(name, key, None)) is not None}
    return Adopted(
        sha256=sha256,
        folder=records.store.path(f"{adopted_key(sha256)}/files"),
        record=record | said,
    )


def held_by(records: Records, name: str) -> str | None:
    """Digest of the encoder that a name stands for, None if it stands for none.

    Raises:
        DamagedRecord: its record is not what was written.
    """
    found = _name(records, name)
    return found.sha256 if found else None


def _name(records: Records, name: str) -> _Name | None:
    if name not in adopted_names(records):
        return None
    plain = records.store.read_json(name_key(name))
    return build_known(_Name, plain, f"record {name_key(name)}")


def adopted_names(records: Records) -> list[str]:
    """Names of all adopted encoders in the store."""
    return [name.removesuffix(".json") for name in records.store.list("adopted/names")]


def with_digests(study: Study, records: Records) -> Study:
    """Fill in the digest of every adopted encoder that a study knows by name only.

    A name that has not been adopted yet is left alone: the plan says so, and a run stops there.

    Raises:
        StudyError: one has another shape than the study says.
    """
    held = adopted_names(records) if _adopts(study) else []

    def change(stage: Stage) -> Stage:
        recipe = stage.recipe
        if not isinstance(recipe, AdoptedRecipe) or recipe.sha256 or recipe.name not in held:
            return stage
        adopted = find_adopted(records, recipe.name)
        check_shape(adopted, recipe)
        return replace(stage, recipe=replace(recipe, sha256=adopted.sha256))

    return study.map_stages(change) if held else study


def check_shape(adopted: Adopted, recipe: AdoptedRecipe) -> None:
    """Refuse (`StudyError`) an encoder of another shape, or for other images, than a study says.

    Also where it is known to be trained on pixels that were normalised otherwise.
    """
    has, says = adopted.encoder, recipe.encoder
    if replace(says, name="") != replace(has, name=""):
        raise StudyError(
            f"the adopted encoder {adopted.sha256[:12]} is {has}, and the study says {says}: "
            "correct the study"
        )
    for key in ("image_size", "num_channels"):
        wants, said = adopted.record[key], getattr(recipe.data, key)
        if wants != said:
            raise StudyError(
                f"the adopted encoder {adopted.sha256[:12]} takes images of {key} {wants}, and the "
                f"study says {said}: set data.{key} of its stage alike"
            )
    for key in ("pixel_mean", "pixel_std"):
        known, said = adopted.record.get(key), getattr(recipe.data, key)
        if known is not None and not _is_near(known, said):
            raise StudyError(
                f"the adopted encoder {adopted.sha256[:12]} was trained on pixels of {key} "
                f"{tuple(known)}, and the study says {said}: set data.{key} of all stages alike"
            )


def _is_near(these: Sequence[float], those: Sequence[float]) -> bool:
    """True if they are one set of numbers, but for how they were rounded."""
    pairs = zip(these, those, strict=False)
    return len(these) == len(those) and all(abs(a - b) < ROUNDING for a, b in pairs)


def _adopts(study: Study) -> bool:
    return any(isinstance(stage.recipe, AdoptedRecipe) for stage in study.all_stages())


def adopted_key(sha256: str) -> str:
    """Where the store keeps the encoder of a checkpoint of this digest."""
    return f"adopted/{sha256[:2]}/{sha256}"


def name_key(name: str) -> str:
    """Where the store keeps which encoder a name stands for."""
    return f"adopted/names/{name}.json"


def _complete(records: Records, reference: str) -> str:
    """A full digest from its first digits; the reference itself if none fits."""
    is_digest = len(reference) >= MIN_PREFIX and not set(reference) - set("0123456789abcdef")
    found = records.store.list(f"adopted/{reference[:2]}") if is_digest else []
    fits = [sha for sha in found if sha.startswith(reference)]
    return fits[0] if len(fits) == 1 else reference
