"""Who may read and write a store: as each user's umask says, its owner alone, or a group.

The mode of the store's own directory says it. Every process that writes into the store takes the
umask that follows: files are made with the right modes, and none is changed afterwards.
"""

from __future__ import annotations

import enum
import errno
import grp
import os
import stat
from pathlib import Path

from mae_core.runtime.storage import umasked
from orchestrator.errors import StoreError, UserError


class Sharing(enum.Enum):
    """With whom a store is shared; the value is the mode of its directories."""

    UMASK = None
    """As the umask of whoever writes says; the default."""
    PRIVATE = 0o700
    """With nobody; its files are 0600."""
    TEAM = 0o2770
    """With a group, which may continue its studies; its files are 0660, and the group's."""

    @property
    def umask(self) -> int | None:
        """Bits that new files do not get; None = as the process has it."""
        return None if self.value is None else 0o777 & ~self.value


def sharing_of(root: Path) -> Sharing:
    """How a store is shared; one that is not there yet by umask."""
    try:
        mode = stat.S_IMODE(root.stat().st_mode)
    except OSError:
        return Sharing.UMASK
    if mode == Sharing.TEAM.value:
        return Sharing.TEAM
    # A private one below a group's directory has inherited the bit of the group.
    return Sharing.PRIVATE if mode & 0o777 == Sharing.PRIVATE.value else Sharing.UMASK


def obey(root: Path) -> int | None:
    """Take the umask of a store for this process; return it, None if it has none of its own."""
    if (umask := sharing_of(root).umask) is not None:
        os.umask(umask)
    return umask


def make_store(root: Path, *, private: bool = False, team: str | None = None) -> None:
    """Make a store that is private or a team's; one that is so already is taken as it is.

    Args:
        team: name of the group.

    Raises:
        UserError: both, no such group, or not a member.
        StoreError: another one is there already.
    """
    if not private and team is None:
        return
    if private and team is not None:
        raise UserError("--private and --team exclude each other: a store is one or the other")
    wanted = Sharing.PRIVATE if team is None else Sharing.TEAM
    group = -1 if team is None else _group_id(team)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not any(root.iterdir()):
            if root.stat().st_uid != os.geteuid():  # its owner could open it again
                raise PermissionError(errno.EPERM, "it is another user's")
            os.chown(root, -1, group)
            root.chmod(wanted.value)
    except OSError as error:
        raise UserError(
            f"{_option(wanted)}: store {root} cannot be made so ({error.strerror}): name a "
            "directory that you own, and a group that you are in"
        ) from error
    if sharing_of(root) is not wanted or group not in (-1, root.stat().st_gid):
        raise StoreError(_is_otherwise(root, wanted, team))
    obey(root)


def owned_mode() -> int:
    """Mode for a file that only those may open who may write it: any of them could lock it."""
    return 0o660 if umasked(0o020) else 0o600


def _option(wanted: Sharing) -> str:
    return f"--{wanted.name.lower()}"


def _is_otherwise(root: Path, wanted: Sharing, team: str | None) -> str:
    if team is None:
        how = f"`chmod -R go= {root}`"
    else:
        how = (
            f"`chgrp -R {team} {root}; chmod -R g=rwX,o= {root}; "
            f"find {root} -type d -exec chmod g+s {{}} +`"
        )
    return (
        f"store {root} is there already, and is not made with {_option(wanted)}: name a new "
        f"directory; or, while nothing runs in it, do {how} and give the same command again"
    )


def _group_id(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise UserError(f"--team {name}: no such group; `groups` lists yours") from None
