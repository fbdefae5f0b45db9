"""A network in files: this project's own, and those of other libraries."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from mae_core.checkpoint import encoder_file, tensor_file
from mae_core.checkpoint.tensor_file import write_safetensors
from mae_core.config import CLASSIFIER_FILE, DECODER_FILE, ENCODER_FILE, DecoderConfig, require
from mae_core.errors import CheckpointError, ConfigError
from mae_core.model.vit import NORM_EPS, Encoder
from mae_core.runtime.storage import umasked
from mae_core.weights import huggingface
from mae_core.weights.layout import check_state, to_theirs
from mae_core.weights.naming import LayoutName, naming_for_export
from mae_core.weights.network import (
    DECODER,
    ENCODER,
    Network,
    with_positions,
    without_fixed_positions,
)

PICKLES = (".pth", ".pt", ".bin")
MAX_EPSILON_EFFECT = 1e-5
"""Largest relative change of features by another LN epsilon that an export may bring."""


def save_own(network: Network, folder: Path, extra: Mapping[str, str]) -> list[str]:
    """Write what stages read: the encoder, and the decoder or the classifier that came with it.

    Returns the names of the files. Positions that equal the fixed table bit by bit are left out,
    as in the files of our own pretraining.
    """
    described = encoder_file.describe(network.encoder, network.image_size, network.num_channels)
    state = without_fixed_positions(network)
    encoder = {k.removeprefix(ENCODER): v for k, v in state.items() if k.startswith(ENCODER)}
    if network.pools_patches:
        encoder |= {f"norm.{part}": state[f"norm.{part}"] for part in ("weight", "bias")}
    encoder_file.save_encoder(
        folder / ENCODER_FILE,
        encoder,
        network.encoder,
        network.image_size,
        network.num_channels,
        extra,
    )
    names = [ENCODER_FILE]
    if network.decoder is not None:
        decoder = {k: v for k, v in state.items() if k.startswith(DECODER)}
        tensor_file.write_tensors(folder / DECODER_FILE, decoder, _decoder_metadata(network))
        names.append(DECODER_FILE)
    if (classes := network.num_classes) is not None:
        metadata = described | {
            "format": encoder_file.CLASSIFIER_FORMAT,
            "features": "mean" if network.pools_patches else "cls",
            "class_names": json.dumps(network.class_names or list(map(str, range(classes)))),
        }
        # A classifier's positions are a parameter, fixed ones too.
        tensor_file.write_tensors(folder / CLASSIFIER_FILE, network.state, metadata)
        names.append(CLASSIFIER_FILE)
    return names


def load_own(path: Path, *, with_decoder: bool = False) -> Network:
    """Read an encoder file, or a classifier's, as a network.

    The decoder is the `decoder.safetensors` beside the encoder. One that does not describe itself
    has the heads of the paper's code (16); its recipe says more, see `with_recipe`.

    Raises:
        CheckpointError: a file is damaged or of another kind.
        ConfigError: a decoder is asked for and there is none.
    """
    state, metadata = tensor_file.read_tensors(path)
    if metadata.get("format") == encoder_file.CLASSIFIER_FORMAT:
        require(not with_decoder, f"{path} is a classifier: it has no decoder")
        config, image_size, num_channels = encoder_file.parse_description(path, metadata)
        network = Network(
            encoder=config,
            image_size=image_size,
            num_channels=num_channels,
            state=state,
            class_names=_class_names(path, metadata),
        )
        return _checked(network, path)
    file = encoder_file.read_encoder(path)
    state = {ENCODER + name: value for name, value in file.state.items()}
    decoder, facts = None, dict[str, str]()
    if with_decoder:
        beside = path.with_name(DECODER_FILE)
        require(beside.is_file(), f"{path}: no {DECODER_FILE} beside it; remove --with-decoder")
        tensors, facts = tensor_file.read_tensors(beside)
        state |= tensors
        decoder = _decoder_config(beside, tensors, facts)
    grid = file.image_size // file.config.patch_size
    ratio, is_normalised = (json.loads(facts.get(k, "null")) for k in _DECODER_FACTS)
    network = Network(
        encoder=file.config,
        image_size=file.image_size,
        num_channels=file.num_channels,
        state=with_positions(state, file.config, decoder, grid),
        decoder=decoder,
        mask_ratio=ratio,
        norm_pix_loss=is_normalised,
    )
    return _checked(network, path)


def write_layout(network: Network, layout: LayoutName, out: Path) -> list[Path]:
    """Write a network as another library does, atomically; return the files.

    `hf` writes a folder with `config.json` and `model.safetensors`; `official` a `.pth` with the
    key `model`; `timm` a state dict as `.safetensors` or `.pth`.

    Raises:
        ConfigError: the layout has no place for a part of the network, or `out` another ending.
    """
    if layout == "hf":
        require(
            not network.pools_patches,
            "Hugging Face's ViT classifies the class token: a classifier of the mean patch token "
            "has no place there; use --layout timm or official",
        )
        require(out.suffix not in (*PICKLES, ".safetensors"), f"--out {out}: hf writes a folder")
        return _write_folder(network, out)
    _check_epsilon(network, layout)
    tensors = to_theirs(network, naming_for_export(layout, network))
    endings = PICKLES if layout == "official" else (".safetensors", *PICKLES)
    require(
        out.suffix in endings,
        f"--out {out}: the {layout} layout is a file that ends in {' or '.join(endings)}",
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".safetensors":
        return [_placed(out, lambda path: write_safetensors(path, tensors, {"format": "pt"}))]
    content = _official(network, tensors) if layout == "official" else tensors
    return [_placed(out, lambda path: _pickle(content, path))]


def tensors_digest(network: Network) -> str:
    """SHA-256 of a network's content, hex: its shape in words, then every tensor by name.

    Independent of the layout it came from and of how its file was written. What says the meaning
    of outputs is a part where it is known: a decoder's `norm_pix_loss`, a classifier's class names.
    """
    encoder, decoder = asdict(network.encoder), network.decoder and asdict(network.decoder)
    del encoder["name"]
    sha = hashlib.sha256()
    words = [encoder, decoder, network.image_size, network.num_channels]
    if decoder and network.norm_pix_loss is not None:
        words.append({"norm_pix_loss": network.norm_pix_loss})
    if network.class_names:
        words.append({"class_names": list(network.class_names)})
    sha.update(json.dumps(words, sort_keys=True).encode())
    for name, value in sorted(network.state.items()):
        value = value.detach().cpu().float().contiguous()
        sha.update(json.dumps([name, list(value.shape)]).encode())
        sha.update(value.numpy().data)
    return sha.hexdigest()


def epsilon_effect(network: Network) -> float:
    """Relative change of features if every LN had the epsilon that timm and the official code have.

    Measured on two images of noise; 0 for an encoder that has it.
    """
    if network.encoder.norm_eps == NORM_EPS:
        return 0.0
    draw = torch.Generator().manual_seed(0)
    size = network.image_size
    images_NCHW = torch.randn(2, network.num_channels, size, size, generator=draw)
    tokens = []
    for config in (network.encoder, replace(network.encoder, norm_eps=NORM_EPS)):
        encoder = Encoder(config, size, network.num_channels, trainable_positions=True)
        # A classifier of the mean has no final LN; what stands in for it changes both alike.
        encoder.load_state_dict(network.part(ENCODER), strict=not network.pools_patches)
        with torch.inference_mode():
            tokens.append(encoder.eval().forward_features(images_NCHW))
    return float((tokens[1] - tokens[0]).norm() / tokens[0].norm())


def _check_epsilon(network: Network, layout: LayoutName) -> None:
    effect = epsilon_effect(network)
    require(
        effect <= MAX_EPSILON_EFFECT,
        f"the encoder's LN epsilon is {network.encoder.norm_eps:g}, files of layout {layout} "
        f"mean {NORM_EPS:g} and cannot say another: features would differ by {effect:.1g}; use "
        "--layout hf",
    )


def _official(network: Network, tensors: dict[str, Tensor]) -> dict[str, object]:
    """The official checkpoint: `model`, and in `args` what is known of a decoder's pretraining.

    The official code keeps an `argparse.Namespace`, which torch refuses to load by default. This
    has the same attributes and loads.
    """
    known = {"norm_pix_loss": network.norm_pix_loss, "mask_ratio": network.mask_ratio}
    known = {k: v for k, v in known.items() if v is not None}
    if network.decoder is None or not known:
        return {"model": tensors}
    settings: OrderedDict[str, object] = OrderedDict(known, input_size=network.image_size)
    vars(settings).update(settings)
    return {"model": tensors, "args": settings}


_DECODER_FACTS = ("mask_ratio", "norm_pix_loss")


def _decoder_metadata(network: Network) -> dict[str, str]:
    assert network.decoder is not None
    facts = {
        "decoder": asdict(network.decoder),
        "mask_ratio": network.mask_ratio,
        "norm_pix_loss": network.norm_pix_loss,
    }
    return {name: json.dumps(value, sort_keys=True) for name, value in facts.items()}


def _decoder_config(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> DecoderConfig:
    try:
        if "decoder" in metadata:
            return DecoderConfig(**json.loads(metadata["decoder"]))
        blocks = {name.split(".")[2] for name in tensors if name.startswith("decoder.blocks.")}
        width = tensors["decoder.embed.weight"].shape[0]
        return DecoderConfig(width=width, depth=len(blocks))
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{path}: describes no pixel decoder: {error}") from error


def _class_names(path: Path, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """As the file says, none where they are their own numbers."""
    try:
        names = tuple(map(str, json.loads(metadata.get("class_names", "[]"))))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: names no classes: {error}") from error
    return () if names == tuple(map(str, range(len(names)))) else names


def _checked(network: Network, path: Path) -> Network:
    try:
        check_state(network)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return network


def _write_folder(network: Network, out: Path) -> list[Path]:
    tensors = to_theirs(network, naming_for_export("hf", network))
    config = json.dumps(huggingface.config_of(network), indent=1) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    weights = _placed(
        out / "model.safetensors", lambda path: write_safetensors(path, tensors, {"format": "pt"})
    )
    return [_placed(out / "config.json", lambda path: path.write_text(config)), weights]


def _pickle(content: object, path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:  # torch's writer hides what the file said
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _placed(out: Path, write: Callable[[Path], object]) -> Path:
    """Write a file under another name, and give it its own when it is whole."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.chmod(umasked(0o666))  # safetensors makes it 0600
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return out
