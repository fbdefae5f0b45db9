"""Write an encoder of a study, or of a file, as another library does, and read it back to check."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_core.config import CLASSIFIER_FILE, DECODER_FILE, ENCODER_FILE, DecoderConfig
from orchestrator.errors import UserError
from orchestrator.plan.accepted import load_accepted
from orchestrator.plan.history import kept_studies
from orchestrator.store.adopted import adopted_names, find_adopted
from orchestrator.store.kept_files import adopted_file, check_named, output
from orchestrator.store.records import Records
from studies.errors import unknown

if TYPE_CHECKING:
    from mae_core.weights import LayoutName, Network

READABLE = (ENCODER_FILE, CLASSIFIER_FILE)
PARTS = (ENCODER_FILE, DECODER_FILE)
_STAGE_ABOVE_FILE = 3
"""Folders from an output up to its stage: outputs, attempt, attempts."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    source: Path
    layout: str
    files: tuple[Path, ...]
    sha256: str
    """Digest of the tensors, as `adopt` counts it; read back from the files."""
    has_decoder: bool
    notes: tuple[str, ...]
    """What the files do not say, and what follows."""


def export(
    reference: str, layout: LayoutName, out: Path, records: Records, *, with_decoder: bool = False
) -> Exported:
    """Write an encoder (with its decoder, or a classifier) in a layout of another library.

    `reference` is `STUDY/CELL`, `STUDY/CELL#STAGE`, the name of an adopted encoder, or the path of
    a file of ours.

    Raises:
        UserError: there is no such file or cell, `out` exists or cannot be written.
        ConfigError: the layout has no place for a part of the network.
        CheckpointError: the file is damaged.
    """
    from mae_core.weights import Hints, import_weights, load_own, tensors_digest, write_layout

    source = find_file(reference, records)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists: remove it or name another")
    network = _with_recipe(load_own(source, with_decoder=with_decoder), source, records)
    try:
        files = write_layout(network, layout, out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    decoder_heads = network.decoder.num_heads if network.decoder else None
    hints = Hints(num_heads=network.encoder.num_heads, decoder_heads=decoder_heads)
    back = replace(import_weights(out, layout, hints).network, encoder=network.encoder)
    said = replace(back, norm_pix_loss=network.norm_pix_loss, class_names=network.class_names)
    if tensors_digest(said) != tensors_digest(network):
        raise UserError(
            f"{out} reads back different from what was written (a disk error?); export again"
        )
    return Exported(
        source=source,
        layout=layout,
        files=tuple(files),
        sha256=tensors_digest(back),
        has_decoder=network.decoder is not None,
        notes=tuple(_unsaid(network, layout)),
    )


def find_file(reference: str, records: Records) -> Path:
    """The file of weights that a path, an address or the name of an adopted encoder means."""
    path = Path(reference)
    if path.is_file():
        return check_named(records, path)
    if path.suffix == ".safetensors" or path.is_dir():
        raise UserError(f"{reference}: no such file; name an {ENCODER_FILE} or STUDY/CELL")
    if reference in adopted_names(records):
        with_it = find_adopted(records, reference).record["files"]
        paths = [adopted_file(records, reference, file) for file in PARTS if file in with_it]
        return paths[0]
    study, cell, stage = split_address(reference, records, adopted_names(records))
    return _output(study, cell, stage, records)


def split_address(
    reference: str, records: Records, others: Iterable[str] = ()
) -> tuple[str, str, str]:
    """Take STUDY/CELL#STAGE apart; the stage may be left out, and is then empty.

    Raises:
        StudyError: no study of this name was run here; `others` are suggested too.
    """
    address, _, stage = reference.partition("#")
    for study, cell in _splits(address):
        if load_accepted(records, study):
            return study, cell, stage
    raise unknown("study", address, [*kept_studies(records), *others], where="the store")


def _splits(address: str) -> Iterator[tuple[str, str]]:
    """Ways to read STUDY/CELL, both of which may contain slashes; the longest study first."""
    parts = address.split("/")
    for end in range(len(parts) - 1, 0, -1):
        yield "/".join(parts[:end]), "/".join(parts[end:])


def _output(study: str, cell: str, stage: str, records: Records) -> Path:
    """The weights that a finished stage of a cell left: the named one, or the first that did."""
    accepted = load_accepted(records, study)
    stages = {name: one.hash for (at, name), one in accepted.items() if at == cell}
    if not stages:
        raise unknown("cell", cell, {at for at, _ in accepted}, where=f"study {study}")
    if stage and stage not in stages:
        raise unknown("stage", stage, stages, where=f"cell {study}/{cell}")
    names = [stage] if stage else list(stages)
    done = {name: record for name in names if (record := records.done(stages[name]))}
    for record in done.values():
        for file in READABLE if stage else (ENCODER_FILE,):
            if file in record.outputs:
                named = (file, DECODER_FILE)
                paths = [output(records, record, n) for n in named if n in record.outputs]
                return paths[0]
    wanted = f"stage {stage}" if stage else "no stage"
    state = "is not finished, or left no weights" if stage else "of it has left an encoder yet"
    raise UserError(f"{study}/{cell}: {wanted} {state}; see `mae-study status {study}`")


def _with_recipe(network: Network, source: Path, records: Records) -> Network:
    """Add what a pretraining's recipe knows of its decoder and the file does not say."""
    science = _science_of(source, records)
    if network.decoder is None or science.get("kind") != "pretrain":
        return network
    recipe = science["recipe"]  # canonical: what is at its default is left out
    return replace(
        network,
        decoder=DecoderConfig(**recipe.get("decoder", {})),
        mask_ratio=recipe.get("mask_ratio", 0.75),
        norm_pix_loss=recipe.get("norm_pix_loss", True),
    )


def _unsaid(network: Network, layout: LayoutName) -> Iterator[str]:
    """What the files do not say, and what their reader has to know or will take instead."""
    from mae_core.weights import assumed_heads

    encoder = network.encoder
    if layout != "hf" and encoder.num_heads != assumed_heads(encoder.width, encoder.depth):
        yield f"no {layout} file says the heads: build the network with {encoder.num_heads}"
    if layout != "hf" and network.class_names:
        yield f"no {layout} file names classes: the names stay behind"
    if network.decoder is None or layout != "hf":
        return
    for name, value, default in (
        ("norm_pix_loss", network.norm_pix_loss, "false"),
        ("mask_ratio", network.mask_ratio, "0.75"),
    ):
        if value is None:
            yield f"{name} is unknown and not in config.json, where transformers takes {default}"


def _science_of(source: Path, records: Records) -> dict[str, Any]:
    """Identity of the stage that left a file, empty for a file outside the store."""
    root = records.store.path("").absolute()
    path = source.absolute()
    if not path.is_relative_to(root) or len(path.relative_to(root).parts) <= _STAGE_ABOVE_FILE:
        return {}
    return records.identity(path.parents[_STAGE_ABOVE_FILE].name)
