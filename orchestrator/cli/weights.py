"""`mae-study adopt` and `export`: encoders from and for other people's programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.options import json_option, open_records, sharing_options, store_option
from orchestrator.cli.output import print_json

if TYPE_CHECKING:
    from orchestrator.store.adopted import Adopted

LAYOUTS = ("official", "hf", "timm")


@click.command()
@click.argument("file")
@click.option("--name", required=True, help="Its name in studies, such as mae_b.")
@click.option(
    "--layout",
    type=click.Choice(["auto", *LAYOUTS, "mmpretrain"]),
    default="auto",
    show_default=True,
    help="Whose names the file's keys have.",
)
@click.option(
    "--size", help="Refuse another size than this, such as B (see `mae_core/model/sizes.py`)."
)
@click.option(
    "--heads",
    type=click.IntRange(min=1),
    help="Attention heads, where no config.json says; default: 64 channels each, in H 80.",
)
@click.option(
    "--decoder-heads",
    type=click.IntRange(min=1),
    help="Heads of the decoder, where no config.json says; default: 16.",
)
@click.option(
    "--part",
    metavar="NAME",
    help="Which network of a file that holds several, such as model_ema or teacher.backbone.",
)
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    help="Pixels a side, for a file without positions; default: 224, as in the official code.",
)
@click.option(
    "--norm-pix-loss/--no-norm-pix-loss",
    default=None,
    help="Whether its pretraining normalised targets per patch; default: as the file says, "
    "unknown if it does not.",
)
@click.option(
    "--classes",
    metavar="TEXTFILE",
    help="Names of a classifier's classes, one per line; default: 0, 1, 2 ...",
)
@store_option
@sharing_options
@json_option
def adopt(
    file: str,
    name: str,
    layout: str,
    size: str | None,
    heads: int | None,
    decoder_heads: int | None,
    part: str | None,
    image_size: int | None,
    norm_pix_loss: bool | None,
    classes: str | None,
    store: str,
    private: bool,
    team: str | None,
    as_json: bool,
) -> None:
    """Import a checkpoint of another library into the store, for use in studies.

    FILE is a .pth of the official MAE code, a folder or safetensors of Hugging Face's ViT or
    ViTMAE, or a checkpoint of timm or mmpretrain, in whatever containers and prefixes a training
    program put them. Nothing in a pickle is run.
    """
    from mae_core.weights import Hints
    from orchestrator.store.driver import LocalStore
    from orchestrator.store.records import Records
    from orchestrator.store.sharing import make_store
    from orchestrator.weights.adopt import adopt as adopt_file

    make_store(Path(store), private=private, team=team)
    local = LocalStore(Path(store))
    local.check_writable()
    found = adopt_file(
        Path(file),
        name,
        Records(local),
        layout=layout,
        hints=Hints(
            num_heads=heads,
            decoder_heads=decoder_heads,
            size=size,
            image_size=image_size,
            norm_pix_loss=norm_pix_loss,
            part=part,
        ),
        class_names=_lines(classes),
    )
    if as_json:
        print_json({"name": name, "recipe": recipe_text(name, found), **found.record})
    else:
        click.echo(adopted_text(name, found))


@click.command()
@click.argument("reference", metavar="CELL_OR_FILE")
@click.option("--layout", type=click.Choice(LAYOUTS), required=True, help="Format to write.")
@click.option("--with-decoder", is_flag=True, help="Write the decoder too (official, hf).")
@click.option(
    "--out",
    required=True,
    metavar="PATH",
    help="A folder for hf; a .pth for official; .safetensors or .pth for timm.",
)
@store_option
@json_option
def export(
    reference: str, layout: str, with_decoder: bool, out: str, store: str, as_json: bool
) -> None:
    """Write an encoder as another library does, and read it back to check.

    CELL_OR_FILE is STUDY/CELL (the cell's encoder) or STUDY/CELL#STAGE (a fine-tuned classifier)
    of the store, the name of an adopted encoder, or the path of an encoder.safetensors.
    """
    from orchestrator.weights.export import export as export_layout

    done = export_layout(
        reference,
        layout,  # type: ignore[arg-type]
        Path(out),
        open_records(store),
        with_decoder=with_decoder,
    )
    if as_json:
        print_json(done)
    else:
        click.echo("\n".join(map(str, done.files)))
        for note in done.notes:
            click.echo(f"note: {note}", err=True)


def recipe_text(name: str, adopted: Adopted) -> str:
    """How a study file names an adopted encoder."""
    return f'AdoptedRecipe(name="{name}", sha256="{adopted.sha256}", ...)'


def adopted_text(name: str, adopted: Adopted) -> str:
    """What was imported and how, for people."""
    record, encoder = adopted.record, adopted.encoder
    size = f"{encoder.name} " if encoder.name else ""
    decoder = record["decoder"]
    lines = [
        f"adopted {name}: {record['layout']} layout, {len(record['mapping'])} tensors",
        f"  encoder    {size}width {encoder.width}, depth {encoder.depth}, "
        f"{encoder.num_heads} heads, patch {encoder.patch_size}, "
        f"{record['image_size']} px, {record['num_channels']} channels",
    ]
    if decoder:
        lines.append(
            f"  decoder    width {decoder['width']}, depth {decoder['depth']}, "
            f"{decoder['num_heads']} heads"
        )
    if record["num_classes"]:
        lines.append(f"  classifier {record['num_classes']} classes")
    facts = (f"{name} {_fact(record.get(name))}" for name in ("norm_pix_loss", "mask_ratio"))
    lines.append(f"  pretrained {', '.join(facts)}")
    lines += [f"  note       {note}" for note in record["notes"]]
    left_out = [*record["left_out"], *record["left_out_of_the_pickle"]]
    if left_out:
        lines.append(f"  left out   {', '.join(left_out)}")
    lines += [
        f"  sha256     {adopted.sha256}",
        f"  files      {adopted.folder}",
        f"in a study   {recipe_text(name, adopted)}",
    ]
    return "\n".join(lines)


def _fact(value: object) -> str:
    return "unknown" if value is None else str(value).lower()


def _lines(path: str | None) -> list[str]:
    from orchestrator.errors import UserError

    if path is None:
        return []
    try:
        return Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {path}: cannot be read ({error})") from error
