"""Recipe of an encoder that was made elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from mae_core.config.base import ENCODER_FILE, EXECUTION, require
from mae_core.config.parts import EncoderConfig, check_patches
from mae_core.config.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class AdoptedRecipe(Recipe):
    """An encoder that `mae-study adopt` took in, as a finished stage: a point of its own."""

    KIND: ClassVar[str] = "adopted"
    ENTRY: ClassVar[str] = "mae_core.pretrain.adopted:run_adopted"
    YIELDS: ClassVar[tuple[str, ...]] = (ENCODER_FILE,)

    encoder: EncoderConfig
    """Shape that the study expects; another one is refused."""
    sha256: str = ""
    """Digest of its tensors, as `adopt` prints it; empty = that of `name` in the store."""
    name: str = field(default="", metadata=EXECUTION)
    """Name that it was adopted under."""

    def __post_init__(self) -> None:
        check_patches(self.data, self.encoder)
        require(bool(self.sha256 or self.name), "an adopted encoder needs a name or a sha256")

    @property
    def protocol(self) -> str:
        """Name for people."""
        return f"adopted encoder {self.name or self.sha256[:12]}"
