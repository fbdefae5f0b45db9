"""Where ranks meet: what torch does with the place after a run harms nobody."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from torch.distributed import FileStore

from cluster.ranks.meeting_point import RETIRED_KEPT, MeetingPoint


def test_a_store_that_is_collected_late_reaches_no_other_file() -> None:
    """It opens its path once more then, in ranks that end after the one who made the place."""
    point = MeetingPoint(None)
    store = FileStore(urlsplit(point.url).path, 2)  # type: ignore[attr-defined]
    store.set("address", "here")
    point.close()
    later = os.memfd_create("weights")
    del store
    assert os.fstat(later).st_size == 0
    assert MeetingPoint(None).url != point.url
    os.close(later)


def test_meeting_points_do_not_fill_the_table_of_files() -> None:
    for _ in range(RETIRED_KEPT):
        MeetingPoint(None).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(RETIRED_KEPT):
        MeetingPoint(None).close()
    assert len(os.listdir("/proc/self/fd")) == before
