"""What a rank says of an adopted encoder that is not there: its stage is finished without one."""

from __future__ import annotations

from typing import NoReturn

from mae_core.config import AdoptedRecipe
from mae_core.errors import ConfigError


def run_adopted(recipe: AdoptedRecipe, *_: object) -> NoReturn:
    """Raise `ConfigError`: an imported encoder is not computed."""
    name = recipe.name or recipe.sha256
    raise ConfigError(
        f"encoder {name!r} has not been adopted into this store: "
        f"mae-study adopt FILE --name {recipe.name or 'NAME'}"
    )
