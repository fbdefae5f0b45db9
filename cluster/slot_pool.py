"""The slots of a study: ranks that stay warm and are lent to one gang after another.

A study owns its slots, one actor each in one placement group. A gang is a subset of them for the
length of one stage, all or nothing; its processes stay warm for the next one, whatever its world
size. A slot that died, or that must not be trusted any more, is replaced in place, and nothing
waits for that: whoever drives the pool keeps its hands free for the other gangs.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from cluster.connect import Capacity
from cluster.errors import ClusterError, ResourcesUnavailable
from cluster.gang import Gang
from cluster.hang import HangLimits
from cluster.nodes import NodeWatch, head_processes
from cluster.ranks.environment import stage_environment
from cluster.ranks.heartbeat import Heartbeat
from cluster.ranks.outcome import JsonObject, Loss, lost
from cluster.ray_outcome import must_retire, outcome_of
from cluster.slots import FIRST_CALL_LIMIT_S, Slot, SlotShape, Starter, answered, max_slots
from cluster.supervision import HeartbeatWatch, end_if_hung, pass_drain_on

if TYPE_CHECKING:
    from ray import ObjectRef

SUCCESSOR_DELAY_S = 4.0
"""With a spare at hand a successor lets the gang recover first: importing torch takes its cores."""
COLLATERAL_GRACE_S = 3.0
"""After one rank failed, the others get this long to fail by themselves before they are killed."""
SLICE_S = 0.2
"""How long `wait` waits at once; slots, heartbeats and nodes are looked after in between."""
ANSWER_TIMEOUT_S = 10.0
ROOM_POLL_S = 1


class SlotPool:
    """All slots of a study. Use as a context manager: the placement group never outlives it.

    Args:
        num_slots: ranks that may work at once.
        spares: slots kept warm beyond those, so that a gang whose rank died starts again at once.
        warm_entry: entry that a new process runs once, to import what stages need.
        sweep_prefix: placement groups whose name begins so are leftovers, and removed.
        placement_timeout_s: how long to wait for room, and for the first processes.
        first_call_limit_s: when a new process that has not answered counts as a failed start.
        hang_limits: when a section of a stage counts as hung.

    Raises:
        ResourcesUnavailable: the cluster is too small for so many slots.
    """

    def __init__(
        self,
        name: str,
        num_slots: int,
        capacity: Capacity,
        *,
        shape: SlotShape,
        spares: int = 0,
        warm_entry: str | None = None,
        sweep_prefix: str | None = None,
        placement_timeout_s: float = 600.0,
        first_call_limit_s: float = FIRST_CALL_LIMIT_S,
        hang_limits: HangLimits | None = None,
    ) -> None:
        if num_slots + spares > max_slots(capacity, shape):
            raise ResourcesUnavailable(
                f"{num_slots + spares} ranks of {shape.cpus} CPU and {shape.gpus} GPU were asked "
                f"for, and the cluster has {capacity.cpus} CPUs and {capacity.gpus} GPUs in all, "
                f"enough for {max_slots(capacity, shape)}; lower execution.world_size or --slots"
            )
        self.name, self.num_slots, self.spares, self.shape = name, num_slots, spares, shape
        self._warm_entry, self._timeout = warm_entry, placement_timeout_s
        self._sweep_prefix, self._is_local = sweep_prefix or name, capacity.is_local
        self._first_call_limit_s = first_call_limit_s
        self._limits = hang_limits or HangLimits()
        self._slots: list[Slot] = []
        self._gangs: dict[str, Gang] = {}
        self._heartbeats = HeartbeatWatch()

    def __enter__(self) -> SlotPool:
        from ray.util.placement_group import placement_group

        sweep(self._sweep_prefix)
        bundle: dict[str, float] = {"CPU": self.shape.cpus}
        if self.shape.gpus:
            bundle["GPU"] = self.shape.gpus
        total = self.num_slots + self.spares
        self._watch = NodeWatch(head_processes() if self._is_local else {})
        self._group = placement_group([bundle] * total, "PACK", name=self.name)
        self._starter = Starter(
            self._group,
            self.shape,
            self._warm_entry,
            is_local=self._is_local,
            first_call_limit_s=self._first_call_limit_s,
        )
        try:
            self._await_room()
            for index in range(total):
                self._starter.begin(index)
            self._await_all(total)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        import ray
        from ray.util.placement_group import remove_placement_group

        self._watch.close()
        with contextlib.suppress(Exception):
            self._watch.check_head()  # every call below would wait a minute for a lost head
            self._starter.stop()
            for slot in self._slots:
                ray.kill(slot.actor)
            remove_placement_group(self._group)

    @property
    def idle(self) -> list[Slot]:
        """Slots that can be lent now, neighbours on a node side by side."""
        self._tend()
        return sorted((s for s in self._ready() if not s.busy), key=lambda s: (s.node, s.index))

    @property
    def num_ready(self) -> int:
        """Slots that work or could: neither starting, nor on a node that is about to go."""
        return len(self._ready())

    def launch(
        self,
        entry: str,
        payload: JsonObject,
        num_ranks: int,
        *,
        avoid_nodes: Collection[str] = frozenset(),
    ) -> Gang | None:
        """Start `entry` on `num_ranks` idle slots; None if so many are not idle.

        Args:
            avoid_nodes: ids of nodes that are not used, even if the gang must wait for others.
        """
        slots = _choose([s for s in self.idle if s.node not in avoid_nodes], num_ranks)
        meeting = self._meeting(slots) if slots else None
        if slots is None or meeting is None:
            return None
        text, now = json.dumps(payload), time.time()
        gang = Gang(slots, [], uuid.uuid4().hex)
        for rank, slot in enumerate(slots):
            slot.busy, slot.asked_at = True, 0.0  # ask for the first heartbeat at once
            peers = [s for s in slots if s.node == slot.node]
            environment = stage_environment(
                rank=rank,
                world=num_ranks,
                # A GPU slot sees its own device only, as number 0.
                local_rank=0 if self.shape.gpus else peers.index(slot),
                local_world=len(peers),
                store=meeting[0],
                listener=None if rank else meeting[1],
            )
            gang.heartbeats[rank] = Heartbeat("", 0, now, None, 0.0, answered_at=now)
            gang.refs.append(slot.actor.run.remote(gang.run_id, entry, text, environment))
        self._gangs[gang.run_id] = gang
        return gang

    def wait(self, gangs: Sequence[Gang], timeout_s: float) -> None:
        """Collect outcomes of `gangs` until one comes in or the time is over.

        Meanwhile slots are replaced, heartbeats taken, hung gangs ended, and the ranks on nodes
        that are about to go asked to stop.

        Raises:
            HeadLost: Ray is gone, and every gang with it.
            ClusterError: no process of an embedded Ray starts any more.
        """
        if gangs and all(gang.is_finished for gang in gangs):
            return
        deadline = time.monotonic() + timeout_s
        while True:
            self._tend()
            for gang in gangs:
                end_if_hung(gang, self._limits)
                self._end_collateral(gang)
            left = max(0.0, deadline - time.monotonic())
            if self._collect(gangs, min(left, SLICE_S)) or left <= SLICE_S:
                break
        self._tend()

    def release(self, gang: Gang) -> None:
        """Take the slots of a gang back; replace those that must not be used again."""
        self._gangs.pop(gang.run_id, None)
        for rank, slot in enumerate(gang.slots):
            slot.busy = False
            if must_retire(slot, gang.outcomes.get(rank)):
                self._retire(slot)

    def _ready(self) -> list[Slot]:
        draining = self._watch.nodes.draining
        return [slot for slot in self._slots if slot.node not in draining]

    def _await_room(self) -> None:
        """Elsewhere busy is a wait, not a failure; a wait without end is one.

        Only the head is asked: `ready()` of Ray runs a task, which a silent node never answers.
        """
        deadline = time.monotonic() + self._timeout
        while not self._group.wait(ROOM_POLL_S):
            self._watch.check_head()
            if time.monotonic() > deadline:
                raise self._no_room()

    def _await_all(self, total: int) -> None:
        deadline = time.monotonic() + self._timeout
        while len(self._slots) < total:
            self._watch.check_head()
            self._slots += self._starter.poll(self._slots)
            problem = self._starter.hopeless()
            if problem:
                raise ClusterError(problem)
            if time.monotonic() > deadline:
                raise self._no_room()
            time.sleep(0.02)

    def _no_room(self) -> ClusterError:
        return ClusterError(
            f"no room for {self.num_slots + self.spares} ranks within {self._timeout:g} s: the "
            "cluster is busy; free it, wait, or ask for fewer --slots"
        )

    def _meeting(self, slots: Sequence[Slot]) -> tuple[str, int | None] | None:
        """Where the slots meet, opened by the first; None if a slot is dead or silent."""
        import ray

        first = slots[0]
        address = first.process.node_ip if len({slot.node for slot in slots}) > 1 else None
        refs: list[ObjectRef[Any]] = [first.actor.open_meeting.remote(address)]
        refs += [slot.actor.heartbeat.remote() for slot in slots[1:]]
        ray.wait(refs, num_returns=len(refs), timeout=ANSWER_TIMEOUT_S)
        answers = []
        for slot, ref in zip(slots, refs, strict=True):
            try:
                answers.append(ray.get(ref, timeout=0))
            except ray.exceptions.RayError:
                self._retire(slot)
        return answers[0] if len(answers) == len(slots) else None

    def _tend(self) -> None:
        """Look after slots, heartbeats and nodes; never blocks."""
        self._watch.check_head()
        self._slots += self._starter.poll(self._slots)
        problem = self._starter.hopeless()
        if problem and self._is_local and not self._slots:  # elsewhere nodes return
            raise ClusterError(problem)
        for slot in self._heartbeats.take(self._slots, self._gangs):
            self._retire(slot)
        for gang in self._gangs.values():
            pass_drain_on(gang, self._watch.nodes.draining)

    def _collect(self, gangs: Sequence[Gang], timeout_s: float) -> bool:
        """Take the outcomes that are there; True if there was one."""
        pending = {ref: (gang, rank) for gang in gangs for rank, ref in enumerate(gang.refs)}
        pending = {r: at for r, at in pending.items() if at[1] not in at[0].outcomes}
        if not pending:
            time.sleep(timeout_s)
            return False
        done = answered(pending, timeout_s) and answered(pending)  # whatever else is ready by now
        for ref in done:
            gang, rank = pending[ref]
            gang.end(outcome_of(ref, rank, gang.slots[rank].node, self._watch.nodes.alive))
        return bool(done)

    def _end_collateral(self, gang: Gang) -> None:
        """End ranks that wait for a peer that has failed."""
        import ray

        failed_for = time.time() - (gang.first_failure or time.time())
        if gang.is_finished or failed_for < COLLATERAL_GRACE_S:
            return
        for rank in gang.at_work():
            ray.kill(gang.slots[rank].actor)
            gang.end(lost(rank, Loss.ENDED_WITH_GANG, "ended because a peer failed"))

    def _retire(self, slot: Slot) -> None:
        """Replace a slot in place; its successor starts in the background."""
        import ray

        with contextlib.suppress(Exception):
            ray.kill(slot.actor)
        self._slots = [s for s in self._slots if s is not slot]
        self._starter.begin(slot.index, SUCCESSOR_DELAY_S if self.idle else 0.0)


def sweep(prefix: str) -> None:
    """Remove placement groups that a killed driver of this study and store left behind."""
    from ray.util import placement_group_table
    from ray.util.placement_group import PlacementGroup, remove_placement_group
    from ray._raylet import PlacementGroupID  # isort: skip

    for group_id, entry in placement_group_table().items():
        if entry["name"].startswith(prefix) and entry["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group_id))))


def _choose(idle: list[Slot], num_ranks: int) -> list[Slot] | None:
    """Prefer the node with the fewest idle slots that still holds the whole gang."""
    if len(idle) < num_ranks:
        return None
    by_node: dict[str, list[Slot]] = {}
    for slot in idle:
        by_node.setdefault(slot.node, []).append(slot)
    fitting = [slots for slots in by_node.values() if len(slots) >= num_ranks]
    best = min(fitting, key=len) if fitting else idle
    return best[:num_ranks]
