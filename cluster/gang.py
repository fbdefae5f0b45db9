"""Slots and gangs: warm rank processes in one placement group, lent to one stage after another.

A study owns its slots, one actor each in one placement group. A gang is a subset of them for the
length of one stage, all or nothing; its processes stay warm for the next one, whatever its world
size. A slot that died, or that must not be trusted any more, is replaced in place.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.connect import Capacity
from cluster.errors import ClusterError, ResourcesUnavailable
from cluster.rank_actor import RankProcess
from cluster.rank_env import process_environment, stage_environment
from cluster.verdict import COLLATERAL

COLLATERAL_GRACE_S = 10.0
"""After one rank failed, the others get this long to fail by themselves before they are killed."""
MEMORY_GROWTH_LIMIT = 1 << 30
PLACEMENT_POLL_S = 5.0


@dataclass(frozen=True)
class SlotShape:
    """Resources of one rank."""

    cpus: int
    gpus: int


def slot_shape(capacity: Capacity, *, cpus_per_rank: int | None = None) -> SlotShape:
    """One GPU and its share of the cores where there are GPUs, else one core, per rank."""
    if capacity.gpus:
        return SlotShape(cpus_per_rank or max(1, capacity.cpus // capacity.gpus), 1)
    return SlotShape(cpus_per_rank or 1, 0)


def max_slots(capacity: Capacity, shape: SlotShape) -> int:
    """How many ranks the whole cluster can hold."""
    by_cpu = capacity.cpus // shape.cpus
    return min(by_cpu, capacity.gpus // shape.gpus) if shape.gpus else by_cpu


@dataclass
class Slot:
    """One rank process and where it is."""

    index: int
    actor: Any
    node: str
    node_ip: str
    devices: tuple[str, ...]
    busy: bool = False
    base_rss: int | None = None


@dataclass
class Gang:
    """The ranks that run one stage together."""

    slots: list[Slot]
    refs: list[Any]
    run_id: str
    """Names this use of the slots, so that a stop never reaches the next one."""
    outcomes: dict[int, dict[str, Any]] = field(default_factory=dict)
    first_failure: float | None = None

    @property
    def is_finished(self) -> bool:
        """True once every rank has an outcome."""
        return len(self.outcomes) == len(self.refs)

    def request_stop(self) -> None:
        """Ask every rank to stop at the next step."""
        for slot in self.slots:
            slot.actor.stop.remote(self.run_id)


class SlotPool:
    """All slots of a study. Use as a context manager: the placement group never outlives it."""

    def __init__(
        self,
        name: str,
        num_slots: int,
        capacity: Capacity,
        *,
        shape: SlotShape,
        warm_entry: str | None = None,
        sweep_prefix: str | None = None,
        placement_timeout_s: float = 600.0,
    ) -> None:
        if num_slots > max_slots(capacity, shape):
            raise ResourcesUnavailable(
                f"{num_slots} ranks of {shape.cpus} CPU and {shape.gpus} GPU were asked for, and "
                f"the cluster has {capacity.cpus} CPUs and {capacity.gpus} GPUs in all, enough for "
                f"{max_slots(capacity, shape)}; lower execution.world_size or --slots"
            )
        self.name, self.num_slots, self.shape = name, num_slots, shape
        self._warm_entry, self._timeout = warm_entry, placement_timeout_s
        self._sweep_prefix, self._is_local = sweep_prefix or name, capacity.is_local
        self._slots: list[Slot] = []
        self._group: Any = None

    def __enter__(self) -> SlotPool:
        import ray
        from ray.util.placement_group import placement_group, remove_placement_group

        sweep(self._sweep_prefix)
        bundle: dict[str, float] = {"CPU": self.shape.cpus}
        if self.shape.gpus:
            bundle["GPU"] = self.shape.gpus
        self._group = placement_group([bundle] * self.num_slots, "PACK", name=self.name)
        try:
            # Elsewhere busy is a wait, not a failure; a wait without end is one.
            ray.get(self._group.ready(), timeout=self._timeout)
            self._slots = self._start(range(self.num_slots))
        except BaseException as error:
            remove_placement_group(self._group)
            if isinstance(error, ray.exceptions.GetTimeoutError):
                raise ClusterError(
                    f"no room for {self.num_slots} ranks within {self._timeout:g} s: the cluster "
                    "is busy; free it, wait, or ask for fewer --slots"
                ) from error
            raise
        return self

    def __exit__(self, *_: object) -> None:
        import ray
        from ray.util.placement_group import remove_placement_group

        for slot in self._slots:
            with contextlib.suppress(Exception):
                ray.kill(slot.actor)
        with contextlib.suppress(Exception):
            remove_placement_group(self._group)

    @property
    def idle(self) -> list[Slot]:
        """Slots that can be lent now, neighbours on a node side by side."""
        return sorted((s for s in self._slots if not s.busy), key=lambda s: (s.node, s.index))

    def launch(self, entry: str, payload: dict[str, Any], num_ranks: int) -> Gang | None:
        """Start `entry` on `num_ranks` idle slots; None if so many are not idle."""
        import ray

        slots = _choose(self.idle, num_ranks)
        if slots is None:
            return None
        try:
            port = ray.get(slots[0].actor.free_port.remote(), timeout=60)
        except ray.exceptions.RayError:  # an idle rank has died, or hangs
            self._replace(slots[:1])
            return None
        text = json.dumps(payload)
        gang = Gang(slots, [], uuid.uuid4().hex)
        for rank, slot in enumerate(slots):
            slot.busy = True
            peers = [s for s in slots if s.node == slot.node]
            environment = stage_environment(
                rank=rank,
                world=num_ranks,
                # A GPU slot sees its own device only, as number 0.
                local_rank=0 if self.shape.gpus else peers.index(slot),
                local_world=len(peers),
                address=slots[0].node_ip,
                port=port,
            )
            gang.refs.append(slot.actor.run.remote(gang.run_id, entry, text, environment))
        return gang

    def wait(self, gangs: Sequence[Gang], timeout_s: float) -> None:
        """Collect outcomes of `gangs` until one finishes or the time is over."""
        import ray

        pending = {ref: (gang, i) for gang in gangs for i, ref in enumerate(gang.refs)}
        pending = {r: at for r, at in pending.items() if at[1] not in at[0].outcomes}
        if not pending:
            return
        done, _ = ray.wait(list(pending), timeout=timeout_s)
        if done:  # whatever else is ready by now
            done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=0)
        for ref in done:
            gang, rank = pending[ref]
            gang.outcomes[rank] = _outcome(ref, rank)
            if "error" in gang.outcomes[rank] and gang.first_failure is None:
                gang.first_failure = time.time()
        for gang in gangs:
            self._kill_stragglers(gang)

    def release(self, gang: Gang) -> None:
        """Take the slots of a finished gang back; replace those that must not be used again."""
        retired = []
        for rank, slot in enumerate(gang.slots):
            outcome = gang.outcomes.get(rank, {})
            if _must_retire(slot, outcome):
                retired.append(slot)
            slot.busy = False
        if retired:
            self._replace(retired)

    def _kill_stragglers(self, gang: Gang) -> None:
        """End ranks that wait for a peer that has failed."""
        import ray

        failed_for = time.time() - (gang.first_failure or time.time())
        if gang.is_finished or failed_for < COLLATERAL_GRACE_S:
            return
        for rank, slot in enumerate(gang.slots):
            if rank not in gang.outcomes:
                ray.kill(slot.actor)
                gang.outcomes[rank] = _died(rank, COLLATERAL, "ended because a peer failed")

    def _replace(self, retired: list[Slot]) -> None:
        import ray

        for slot in retired:
            with contextlib.suppress(Exception):
                ray.kill(slot.actor)
        fresh = self._start([slot.index for slot in retired])
        kept = [s for s in self._slots if s not in retired]
        self._slots = sorted(kept + fresh, key=lambda s: s.index)

    def _start(self, indices: Sequence[int] | range) -> list[Slot]:
        """Start an actor in each of these bundles, all at once, warmed."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        actor_class = ray.remote(_RankActor)
        variables = process_environment(self.shape.cpus, is_local=self._is_local)
        actors = [
            actor_class.options(
                num_cpus=self.shape.cpus,
                num_gpus=self.shape.gpus,
                max_concurrency=2,  # `stop` must get through while `run` works
                runtime_env={"env_vars": variables},
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._group, placement_group_bundle_index=index
                ),
            ).remote()
            for index in indices
        ]
        infos = ray.get([actor.info.remote() for actor in actors], timeout=self._timeout)
        slots = [
            Slot(index, actor, info["node"], info["node_ip"], tuple(info["devices"]))
            for index, actor, info in zip(indices, actors, infos, strict=True)
        ]
        self._check_devices([s for s in self._slots if s.index not in indices] + slots)
        if self._warm_entry:
            warm = [actor.warm.remote(self._warm_entry) for actor in actors]
            ray.get(warm, timeout=self._timeout)
        return slots

    def _check_devices(self, slots: Sequence[Slot]) -> None:
        """Refuse slots that share a GPU, before torch starts on any of them."""
        if not self.shape.gpus:
            return
        seen = [(s.node, d) for s in slots for d in s.devices]
        if len(set(seen)) != len(slots) or any(len(s.devices) != 1 for s in slots):
            raise ClusterError(
                f"the ranks do not have one GPU each, distinct per node: {seen}; was Ray started "
                "by a launcher that hides or shares devices?"
            )


class _RankActor(RankProcess):
    """The rank process as Ray sees it."""

    def info(self) -> dict[str, Any]:
        import ray

        context = ray.get_runtime_context()
        where = {"node": context.get_node_id(), "node_ip": ray.util.get_node_ip_address()}
        return super().info() | where


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


def _outcome(ref: Any, rank: int) -> dict[str, Any]:
    """What a rank returned, or how its process died, as plain values."""
    import ray

    try:
        value: dict[str, Any] = ray.get(ref)
        return value
    except ray.exceptions.RayError as error:
        kind = type(error).__name__
        # By type: the text of every death mentions memory as one of its possible causes.
        out_of_memory = isinstance(error, ray.exceptions.OutOfMemoryError)
        name = "HostOutOfMemory" if out_of_memory else "RankDied"
        return _died(rank, name, f"the process of rank {rank} died ({kind})", str(error)[-4000:])


def _died(rank: int, name: str, message: str, trace: str = "") -> dict[str, Any]:
    """Outcome of a rank whose process is gone."""
    now = time.time()
    error = {"type": name, "types": [name], "message": message, "traceback": trace, "at": now}
    return {"rank": rank, "error": error, "ended_at": now}


def _must_retire(slot: Slot, outcome: dict[str, Any]) -> bool:
    """Dead, after a CUDA error (its context is poisoned), or grown."""
    error = outcome.get("error")
    if error is not None:
        types = set(error["types"])
        if types & {"RankDied", "HostOutOfMemory", COLLATERAL} or "CUDA" in error["message"]:
            return True
    rss = outcome.get("rss_bytes", 0)
    slot.base_rss = slot.base_rss or rss
    return bool(rss > max(2 * slot.base_rss, slot.base_rss + MEMORY_GROWTH_LIMIT))
