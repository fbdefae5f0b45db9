"""Slots: warm rank processes, and starting them without ever waiting for one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.connect import Capacity
from cluster.errors import ClusterError
from cluster.ranks.actor import ProcessInfo, RankAnswer, RankProcess
from cluster.ranks.environment import process_environment
from cluster.ranks.meeting_point import use_interface_of

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle
    from ray.util.placement_group import PlacementGroup

T = TypeVar("T")
QUICK_RETRIES = 5
"""Starts that may fail in a row, with growing pauses, before a slot counts as lost."""
LOST_RETRY_S = 30.0
"""Pause between the starts of a lost slot: nodes return."""
FIRST_CALL_LIMIT_S = 120.0
"""A process on a node that lives answers its first call by then; shipped packages included."""
SILENCE_WEIGHT = 3
"""A start that ends in silence counts as so many failed ones: two in a row are enough."""
WARM_LIMIT_S = 600.0
MAX_CONCURRENCY = 4
"""`stop`, `heartbeat` and `stacks` must get through while `run` works."""


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


@dataclass(eq=False)
class Slot:
    """One warm rank process and where it is."""

    index: int
    actor: ActorHandle
    process: ProcessInfo
    busy: bool = False
    base_rss: int | None = None
    heartbeat_ref: ObjectRef[RankAnswer] | None = None
    """A question for the heartbeat that was not answered yet."""
    asked_at: float = 0.0

    @property
    def node(self) -> str:
        """Id of the node that it is on."""
        return self.process.node


@dataclass
class _Start:
    """A process that is not ready yet."""

    actor: ActorHandle | None = None
    ref: ObjectRef[Any] | None = None
    slot: Slot | None = None
    """Set once the process has said where it is; it warms up then."""
    began: float = 0.0
    failures: int = 0
    retry_at: float = 0.0
    problem: str = ""


class Starter:
    """Starts an actor in each bundle of a placement group that lacks one.

    An actor whose bundle has no node waits for one, as long as that takes; the others go on.
    """

    def __init__(
        self,
        group: PlacementGroup,
        shape: SlotShape,
        warm_entry: str | None,
        *,
        is_local: bool,
        first_call_limit_s: float,
    ) -> None:
        import ray

        self._group, self._shape, self._warm_entry = group, shape, warm_entry
        self._first_call_limit_s = first_call_limit_s
        # Once: Ray sends a class to its head when it is first used, and waits for that.
        self._actor_class = ray.remote(_RankActor)
        self._variables = process_environment(shape.cpus, is_local=is_local)
        self._starts: dict[int, _Start] = {}

    def begin(self, index: int, delay_s: float = 0.0) -> None:
        """Start a process in this bundle, now or later; `poll` hands it out when it is ready."""
        self._starts[index] = _Start(retry_at=time.monotonic() + delay_s)
        if not delay_s:
            self._create(index)

    def poll(self, others: Sequence[Slot]) -> list[Slot]:
        """Slots that became ready; never blocks.

        Args:
            others: the slots that are ready already.

        Raises:
            ClusterError: two slots share a GPU, or one has none.
        """

        refs = {start.ref: index for index, start in self._starts.items() if start.ref is not None}
        ready: list[Slot] = []
        for index in [refs[ref] for ref in answered(refs)]:
            slot = self._advance(index, [*others, *ready])
            if slot is not None:
                ready.append(slot)
                del self._starts[index]
        for index, start in self._starts.items():
            self._look_after(index, start)
        return ready

    def hopeless(self) -> str:
        """What keeps failing, "" if nothing does."""
        lost = [s for s in self._starts.values() if s.failures > QUICK_RETRIES]
        return lost[0].problem if lost else ""

    def stop(self) -> None:
        """Kill what is starting."""
        for start in self._starts.values():
            _kill(start.actor)
        self._starts.clear()

    def _create(self, index: int) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        start = self._starts[index]
        start.actor = self._actor_class.options(
            num_cpus=self._shape.cpus,
            num_gpus=self._shape.gpus,
            max_concurrency=MAX_CONCURRENCY,
            runtime_env={"env_vars": self._variables},
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=index
            ),
        ).remote()
        start.ref, start.slot, start.began = start.actor.info.remote(), None, time.monotonic()

    def _advance(self, index: int, others: Sequence[Slot]) -> Slot | None:
        """Take the next step of a start: where it is, then warm, then ready."""
        import ray

        start = self._starts[index]
        try:
            answer = ray.get(start.ref)
        except ray.exceptions.RayError as error:
            self._failed(start, f"a rank process does not start: {str(error).strip()[-2000:]}")
            return None
        if start.slot is not None:
            return start.slot
        start.slot = Slot(index, start.actor, answer)
        self._check_devices([*others, start.slot])  # before torch starts on it
        if self._warm_entry is None:
            return start.slot
        start.ref, start.began = start.slot.actor.warm.remote(self._warm_entry), time.monotonic()
        return None

    def _look_after(self, index: int, start: _Start) -> None:
        now = time.monotonic()
        if start.ref is None:
            if now >= start.retry_at:
                self._create(index)
        elif start.slot is not None and now - start.began > WARM_LIMIT_S:
            self._failed(start, f"a rank process did not warm up within {WARM_LIMIT_S:.0f} s")
        elif start.slot is None and now - start.began > self._first_call_limit_s:
            start.began = now  # a bundle without a node waits on
            node = self._node_of(index)
            if node is not None:
                problem = (
                    f"a rank process on {node} did not answer its first call within "
                    f"{self._first_call_limit_s:g} s: look there for what holds new processes up"
                )
                self._failed(start, problem, SILENCE_WEIGHT)

    def _node_of(self, index: int) -> str | None:
        """Name and address of the node that a bundle is on; None if it has none that lives."""
        import ray
        from ray.util import placement_group_table

        node = placement_group_table(self._group)["bundles_to_node_id"].get(index)
        living = {n["NodeID"]: n for n in ray.nodes() if n["Alive"]}
        if node not in living:
            return None
        return f"{living[node]['NodeManagerHostname']} ({living[node]['NodeManagerAddress']})"

    def _failed(self, start: _Start, problem: str, weight: int = 1) -> None:
        _kill(start.actor)
        start.failures += weight
        start.actor, start.ref, start.slot, start.problem = None, None, None, problem
        start.retry_at = time.monotonic() + pause_s(start.failures)

    def _check_devices(self, slots: Sequence[Slot]) -> None:
        """Refuse slots that share a GPU."""
        if not self._shape.gpus:
            return
        seen = [(s.node, d) for s in slots for d in s.process.devices]
        if len(set(seen)) != len(slots) or any(len(s.process.devices) != 1 for s in slots):
            raise ClusterError(
                f"the ranks do not have one GPU each, distinct per node: {seen}; was Ray started "
                "by a launcher that hides or shares devices?"
            )


def pause_s(failures: int) -> float:
    """Seconds before the next start after so many failed in a row."""
    return LOST_RETRY_S if failures > QUICK_RETRIES else min(LOST_RETRY_S, 0.5 * 2.0**failures)


def answered(refs: Collection[ObjectRef[T]], timeout_s: float = 0.0) -> list[ObjectRef[T]]:
    """Those of `refs` that have an answer by now, or that get one in time if none has."""
    import ray

    if not refs:
        return []
    enough = 1 if timeout_s else len(refs)
    done: list[ObjectRef[T]] = ray.wait(list(refs), num_returns=enough, timeout=timeout_s)[0]
    return done


def _kill(actor: ActorHandle | None) -> None:
    import ray

    with contextlib.suppress(Exception):
        ray.kill(actor)


class _RankActor(RankProcess):
    """The rank process as Ray sees it."""

    def info(self) -> ProcessInfo:
        import ray

        node, address = ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
        use_interface_of(address)
        return replace(super().info(), node=node, node_ip=address)
