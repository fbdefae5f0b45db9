"""What no tensor shows: how the network was pretrained, by the words that came with it.

Where nobody says it, it is unknown: None, and never a default of some program.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mae_core.config import require
from mae_core.weights.source import CONFIG, PIXELS, Source

Said = tuple[str, object]
"""Where something is said, and the value."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of the pretraining and its images; None where it is unknown."""

    norm_pix_loss: bool | None = None
    """Whether the targets were normalised per patch (paper section 3)."""
    mask_ratio: float | None = None
    """Share of hidden patches."""
    image_size: int | None = None
    """Pixels a side, where words say it."""
    pixel_mean: tuple[float, ...] | None = None
    """Mean of the pixels that the images were normalised with, by channel."""
    pixel_std: tuple[float, ...] | None = None
    """Their deviation."""
    num_heads: int | None = None
    """Of the encoder, as the settings of its training say; `config.json` is read by `infer`."""
    decoder_num_heads: int | None = None
    """Of the decoder, likewise."""
    notes: tuple[str, ...] = ()
    """Who said what."""


def read_facts(
    source: Source, norm_pix_loss: bool | None = None, image_size: int | None = None
) -> Facts:
    """Read them off a file's words; the arguments are the caller's, and go before the file's.

    Raises `ConfigError` if the words contradict each other, or a config has no such value.
    """
    found: dict[str, object] = {}
    notes: list[str] = []
    outer = {where: words for where, words in source.arguments.items() if "." not in where}
    every = {CONFIG: source.config, **source.arguments}
    for name, keys, words, option, given in (
        ("norm_pix_loss", ("norm_pix_loss",), every, "--norm-pix-loss", norm_pix_loss),
        ("mask_ratio", ("mask_ratio",), every, "", None),
        # Settings inside others may be of a crop, or of another network.
        (
            "image_size",
            ("image_size", "input_size"),
            {CONFIG: source.config, **outer},
            "--image-size",
            image_size,
        ),
        ("num_heads", ("num_heads", "num_attention_heads"), outer, "--heads", None),
        ("decoder_num_heads", ("decoder_num_heads",), source.arguments, "--decoder-heads", None),
    ):
        said = [one for key in keys for one in _sayings(words, key, _CHECKS[name], notes)]
        found[name], note = _agreed(name, said, option, given)
        notes += [note] if note else []
    mean, std = _channels(source, "image_mean", "mean"), _channels(source, "image_std", "std")
    for name, known in (("pixel_mean", mean), ("pixel_std", std)):
        if known:
            notes.append(f"{name} {known}, as its images had: set data.{name} alike")
    return Facts(
        **found,  # type: ignore[arg-type]
        pixel_mean=mean,
        pixel_std=std,
        notes=tuple(notes),
    )


def _agreed(name: str, said: Sequence[Said], option: str, given: object) -> tuple[object, str]:
    """The one value that is said, and a sentence on who says it; the caller's if there is one."""
    listed = " and ".join(f"{where} says {_word(value)}" for where, value in said)
    values = {value for _, value in said}
    if given is not None:
        other = f" ({listed})" if values - {given} else ""
        return given, f"{name} {_word(given)}, by {option}{other}"
    advice = f"; say which with {option}" if option else ""
    require(len(values) <= 1, f"two readings of {name}: {listed}{advice}")
    if not said:
        return None, ""
    return said[0][1], f"{name} {_word(said[0][1])}, by {said[0][0]}"


def _sayings(
    words: Mapping[str, Mapping[str, object]], key: str, check: _Check, notes: list[str]
) -> list[Said]:
    """Who says what; a config with no such value is refused, settings with none are noted."""
    said: list[Said] = []
    for where, settings in words.items():
        value = settings.get(key)
        if isinstance(value, list | tuple) and len(value) == 2 and _is_number(value[0]):
            value = value[0] if value[0] == value[1] else value  # a square, side by side
        if value is None:
            continue
        wrong = f"{where}: {key} = {reprlib.repr(value)} is not {check.what}"
        require(check.holds(value) or where != CONFIG, wrong)
        if check.holds(value):
            said.append((where, value))
        else:
            notes.append(f"{wrong}: taken as unknown")
    return said


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class _Check:
    what: str
    holds: Callable[[object], bool]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


_CHECKS = {
    "norm_pix_loss": _Check("true or false", lambda value: isinstance(value, bool)),
    "mask_ratio": _Check(
        "a number from 0 to less than 1",
        lambda value: _is_number(value) and 0 <= value < 1,  # type: ignore[operator]
    ),
    "image_size": _Check("a number of pixels", _is_count),
    "num_heads": _Check("a number of heads", _is_count),
    "decoder_num_heads": _Check("a number of heads", _is_count),
}


def _channels(source: Source, theirs: str, timms: str) -> tuple[float, ...] | None:
    """One number per channel, of `preprocessor_config.json` or of timm's `pretrained_cfg`.

    Of pixels from 0 to 1: transformers may scale bytes otherwise than by 1/255, or not normalise.
    """
    pixels, timm = source.pixels, source.config.get("pretrained_cfg")
    if pixels.get("do_normalize") is False:
        channels = source.config.get("num_channels", 3)
        count = channels if _is_count(channels) else 3
        pixels = {**pixels, theirs: [float(theirs == "image_std")] * count}  # type: ignore[operator]
    factor = pixels.get("rescale_factor", 1 / 255) if pixels.get("do_rescale", True) else 1
    require(
        _is_number(factor) and factor > 0,  # type: ignore[operator]
        f"{PIXELS}: rescale_factor = {factor!r} is not a number above 0",
    )
    scale = round(255 * factor, 9)  # type: ignore[operator]
    for where, settings, key, unit in (
        (PIXELS, pixels, theirs, scale),
        (CONFIG, timm if isinstance(timm, Mapping) else {}, timms, 1.0),
    ):
        value = settings.get(key)
        if value is not None:
            listed = value if isinstance(value, list | tuple) else []
            numbers = tuple(float(one) / unit for one in listed if _is_number(one))
            require(
                len(numbers) == len(listed) > 0, f"{where}: {key} = {value!r} is no list of numbers"
            )
            return numbers
    return None
