"""What must be true of a history of operations: pure functions over what the workers logged.

Whatever was asked about an app is turned into operations on its single records: a `load` of the latest that gives
record 7 has *read* record 7, and has *passed over* all later ones, so that each of them was absent or failed at some
moment while it looked.  A rewind or a prune *removes* records, a copy *reads* all of them.  Records do not depend on
each other, so each one's operations are checked alone: there must be an order of them, each somewhere between its call
and its answer, in which every answer is right (linearizability, by Lowe's just-in-time form of Wing and Gong's search).

An operation that was never answered, because the store was out of reach or the worker was killed, may take effect once
at any later time, or never.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Content = tuple[str, str]
"""What a record holds: the name of its state, which only one save has, and its status."""

Kind = Literal["save", "overwrite", "refused", "remove", "read", "passed over", "listed"]


class Operation(NamedTuple):
    """What was done to one record, or seen of it."""

    kind: Kind
    content: Content | None
    """What was saved or read; None for a record that was not there.  Of a listing, only the status counts."""
    start: float
    end: float
    """When it was answered; infinity where it never was."""

    @property
    def certain(self) -> bool:
        """Whether it took effect for certain."""
        return self.end < math.inf


def after(state: Content | None, operation: Operation) -> tuple[Content | None] | None:
    """What a record holds after an operation, in a tuple; None where the operation cannot have been answered so."""
    kind, content = operation.kind, operation.content
    if kind == "save":  # a failed record gives way, the same again is fine
        possible = state is None or state == content or state[1] == "failed"
        return (content,) if possible else None
    if kind == "overwrite":
        return (content,)
    if kind == "remove":
        return (None,)
    if kind == "refused":
        possible = state is not None and state[1] != "failed" and state != content
    elif kind == "read":
        possible = state == content
    elif kind == "passed over":
        possible = state is None or state[1] == "failed"
    else:
        possible = state is not None and content is not None and state[1] == content[1]
    return (state,) if possible else None


def misfit(operations: Iterable[Operation]) -> tuple[Operation, set[Content | None]] | None:
    """The first operation that fits in no order of all of them, with what the record can have held; or None."""
    ordered = sorted(operations, key=lambda each: each.start)
    # At one and the same time, what begins comes before what ends: then they may have been in either order.
    events = sorted(
        [(each.start, 0, number) for number, each in enumerate(ordered)]
        + [(each.end, 1, number) for number, each in enumerate(ordered) if each.certain]
    )
    # What the record may hold by now, with those operations of which that is the effect and that are still under way.
    possible: set[tuple[Content | None, frozenset[int]]] = {(None, frozenset())}
    under_way: list[int] = []
    for _, is_answer, number in events:
        if not is_answer:
            under_way.append(number)
            continue
        reached: set[tuple[Content | None, frozenset[int]]] = set()
        seen = set(possible)
        ahead = list(possible)
        while ahead:
            state, done = ahead.pop()
            if number in done:
                reached.add((state, done - {number}))
                continue
            tried: set[tuple[Kind, Content | None]] = set()
            for other in under_way:
                operation = ordered[other]
                if other in done:
                    continue
                if not operation.certain:  # of several that are alike, it does not matter which it was
                    if (operation.kind, operation.content) in tried:
                        continue
                    tried.add((operation.kind, operation.content))
                following = after(state, operation)
                if following is None or (not operation.certain and following[0] == state):
                    continue
                step = (following[0], done | {other})
                if step not in seen:
                    seen.add(step)
                    ahead.append(step)
        if not reached:
            return ordered[number], {state for state, _ in possible}
        possible = reached
        under_way.remove(number)
    return None


# From what was asked about apps to operations on records


@dataclass
class Event:
    """One call of one worker, as it was logged."""

    op: str
    """``save``, ``load``, ``latest``, ``history``, ``rewind``, ``prune``, ``delete``, ``copy`` or ``list``."""
    app: str = ""
    start: float = 0
    end: float = math.inf
    outcome: str = "unknown"
    """``ok``, ``refused`` (a conflict), ``absent`` (nothing to rewind to), ``unknown`` or ``broken``."""
    seq: int = -1
    """The sequence id that was saved, loaded or rewound to."""
    content: Content | None = None
    """What was saved."""
    mode: str = "error"
    """What a save does where there is another record already."""
    keep: int = 0
    """How many records a prune was to keep."""
    result: Any = None
    """What came back."""
    by: str = ""
    """Who asked."""
    problem: str = ""

    @property
    def is_certain(self) -> bool:
        return self.outcome == "ok"


@dataclass
class _Known:
    """The records of an app as its one writer knows them: those that are there, and those that may be."""

    certain: dict[int, str] = field(default_factory=dict)
    possible: set[int] = field(default_factory=set)

    def note(self, event: Event) -> None:
        """Take in a save or a rewind."""
        seq = event.seq
        if event.op == "save":
            assert event.content is not None
            if event.is_certain:
                self.certain[seq] = event.content[1]
            elif event.outcome == "unknown":
                self.possible.add(seq)  # for ever: it may yet arrive
        if event.op == "rewind" or (event.op == "save" and event.mode == "rewind"):
            going = [each for each in self.certain if each > seq] if event.outcome in ("ok", "unknown") else []
            for each in going:
                del self.certain[each]
                if not event.is_certain:
                    self.possible.add(each)

    def prune(self, event: Event) -> dict[int, bool]:
        """Take in a prune: which records it removes, and whether that is certain."""
        going = {}
        for seq in set(self.certain) | self.possible:
            newer = sum(status == "completed" for each, status in self.certain.items() if each > seq)
            maybe_newer = newer + sum(each > seq and each not in self.certain for each in self.possible)
            if maybe_newer >= event.keep:
                going[seq] = event.is_certain and newer >= event.keep
        for seq, certain in going.items():
            if self.certain.pop(seq, None) and not certain:
                self.possible.add(seq)
        return going


def operations(events: Sequence[Event]) -> dict[tuple[str, int], list[Operation]]:
    """The operations on each record, by app and sequence id, of all that was asked."""
    found: dict[tuple[str, int], list[Operation]] = defaultdict(list)
    apps: dict[str, list[Event]] = defaultdict(list)
    copies = [each for each in events if each.op == "copy" and each.is_certain]
    for event in events:
        if event.app:
            apps[event.app].append(event)
    for app, of_app in apps.items():
        first_save: dict[int, float] = {}
        for event in of_app:
            if event.op == "save":
                first_save[event.seq] = min(first_save.get(event.seq, math.inf), event.start)
        known = _Known()
        for event in sorted([*of_app, *copies], key=lambda each: each.start):
            for seq, kind, content, certain in _effects(event, app, first_save, known):
                end = event.end if certain else math.inf
                found[app, seq].append(Operation(kind, content, event.start, end))
    return found


Effect = tuple[int, Kind, "Content | None", bool]


def _effects(event: Event, app: str, first_save: dict[int, float], known: _Known) -> Iterable[Effect]:
    """What an event did to single records, or saw of them."""
    op, ok, seq = event.op, event.is_certain, event.seq
    # What nobody had begun to save when it ended cannot matter.
    there = [each for each, began in first_save.items() if began <= event.end]
    if op == "save":
        if event.outcome in ("ok", "unknown"):
            yield seq, "save" if event.mode == "error" else "overwrite", event.content, ok
        elif event.outcome == "refused":
            yield seq, "refused", event.content, True
    if op == "rewind" or (op == "save" and event.mode == "rewind"):
        if event.outcome in ("ok", "unknown"):
            yield from ((each, "remove", None, ok) for each in there if each > seq)
        elif event.outcome == "absent":
            yield seq, "read", None, True
    if op in ("save", "rewind"):
        known.note(event)
    elif op == "prune" and event.outcome in ("ok", "unknown"):
        yield from ((each, "remove", None, certain) for each, certain in known.prune(event).items())
    elif op == "delete" and event.outcome in ("ok", "unknown"):
        yield from ((each, "remove", None, ok) for each in there)
    elif not ok:
        return
    elif op == "load":
        yield seq, "read", event.result, True
    elif op == "latest":
        if event.result is not None:
            at, content = event.result
            yield at, "read", content, True
            there = [each for each in there if each > at]
        yield from ((each, "passed over", None, True) for each in there)
    elif op == "history":
        for each in there:
            status = event.result.get(each)
            yield each, "listed" if status else "read", ("", status) if status else None, True
    elif op == "copy":
        of_app = event.result.get(app, {})
        yield from ((each, "read", of_app.get(each), True) for each in there)


def violations(events: Sequence[Event]) -> list[str]:
    """All that cannot be, in words; nothing if all is well."""
    found = [f"{each.op} of {each.app} by {each.by}: {each.problem}" for each in events if each.outcome == "broken"]
    for (app, seq), of_record in operations(events).items():
        wrong = misfit(of_record)
        if wrong is not None:
            operation, states = wrong
            found.append(
                f"{app}, sequence id {seq}: {operation.kind} {operation.content} from {operation.start} to "
                f"{operation.end}, where the record can only have been {sorted(states, key=str)}"
            )
    return found + _unlisted(events) + _lost_by_rewinds(events) + _unknown_records(events)


def _unlisted(events: Sequence[Event]) -> list[str]:
    """Lists of apps that lack one, or have one that nobody made."""
    begun: dict[str, float] = {}
    there: dict[str, float] = {}
    deleted: dict[str, float] = {}
    for each in events:
        if each.op == "save":
            begun[each.app] = min(begun.get(each.app, math.inf), each.start)
            if each.is_certain:
                there[each.app] = min(there.get(each.app, math.inf), each.end)
        elif each.op == "delete":
            deleted[each.app] = min(deleted.get(each.app, math.inf), each.start)
    found = []
    for each in events:
        if each.op == "list" and each.is_certain:
            listed = set(each.result)
            must = {app for app, since in there.items() if since < each.start and deleted.get(app, math.inf) > each.end}
            found += [f"list at {each.start}: {app} is missing" for app in sorted(must - listed)]
            found += [
                f"list at {each.start}: {app} was never saved"
                for app in sorted(listed)
                if begun.get(app, math.inf) > each.end
            ]
    return found


def _lost_by_rewinds(events: Sequence[Event]) -> list[str]:
    """Acknowledged records that are neither live nor set aside, by what was listed in the end (``aside``).

    Each record has a time of its own; a crash in the midst of a rewind may leave a record in both places, or twice.
    """
    found = []
    for each in events:
        if each.op != "aside" or not each.is_certain:
            continue
        saved: dict[int, set[str]] = defaultdict(set)
        for event in events:
            if event.op == "save" and event.app == each.app and event.is_certain and event.content is not None:
                content, status = event.content
                if status == "completed":
                    saved[event.seq].add(content)
        listed: dict[int, set[str]] = defaultdict(set)
        for seq, created_at in each.result:
            listed[seq].add(created_at)
        found += [
            f"{each.app}, sequence id {seq}: {len(contents)} states were saved, {len(listed[seq])} are kept"
            for seq, contents in sorted(saved.items())
            if len(listed[seq]) < len(contents)
        ]
    return found


def _unknown_records(events: Sequence[Event]) -> list[str]:
    """Records that were read and that nobody has saved."""
    saved = {(each.app, each.seq) for each in events if each.op == "save"}
    found = set()
    for each in events:
        if not each.is_certain or each.result is None:
            continue
        if each.op == "latest":
            found.add((each.app, each.result[0]))
        elif each.op == "load":
            found.add((each.app, each.seq))
        elif each.op == "history":
            found.update((each.app, seq) for seq in each.result)
        elif each.op == "copy":
            found.update((app, seq) for app, records in each.result.items() for seq in records)
    return [f"{app}, sequence id {seq}: read, and saved by nobody" for app, seq in sorted(found - saved)]


# Resources


def growth(samples: Sequence[float]) -> float | None:
    """How much more the last third of some samples has than the first, by medians, once it has warmed up.

    The first quarter is left out.  None for fewer than eleven samples.
    """
    warm = samples[len(samples) // 4 :]
    third = len(warm) // 3
    if third < 3:
        return None
    return statistics.median(warm[-third:]) - statistics.median(warm[:third])
