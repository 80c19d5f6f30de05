"""A state machine (hypothesis) that holds a store against a model: a sorted dict."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule

# Few segments, so that keys collide, nest and neighbour each other.  Names end in "k" and folders do not, so
# that no key is the start of another, which file systems cannot hold.
_FOLDERS = st.sampled_from(["a", "a-", "a0", "a=2f", "92233720368", "92233720368547758010"])
_NAMES = st.one_of(
    st.sampled_from(["k", "ak", "a-k", "a.k", "!k", "92233720368k", "9223372036854775801k"]),
    st.integers(0, 2**63 - 1).map(lambda number: f"{2**63 - 1 - number:019d}.{number}.k"),
)
KEYS = st.builds(lambda folders, name: "/".join([*folders, name]), st.lists(_FOLDERS, max_size=2), _NAMES)
VALUES = st.binary(max_size=40)


class StoreMachine(RuleBasedStateMachine):
    """Any operations on an empty store, which is left empty again."""

    keys = Bundle("keys")

    def __init__(self, store: Any) -> None:
        super().__init__()
        self.model: dict[str, bytes] = {}
        self.store = store

    def teardown(self) -> None:
        self.store.delete(list(self.model))

    @rule(target=keys, key=KEYS)
    def new_key(self, key: str) -> str:
        return key

    @rule(key=keys, value=VALUES)
    def put(self, key: str, value: bytes) -> None:
        assert self.store.put(key, value) is True
        self.model[key] = value

    @rule(key=keys, value=VALUES)
    def create(self, key: str, value: bytes) -> None:
        assert self.store.put(key, value, mode="create") is (key not in self.model)
        self.model.setdefault(key, value)

    @rule(key=keys, old=VALUES, new=VALUES | st.none(), right=st.booleans())
    def replace(self, key: str, old: bytes, new: bytes | None, right: bool) -> None:
        old = self.model.get(key, old) if right else old
        matches = self.model.get(key) == old
        assert self.store.replace(key, old, new) is matches
        if matches and new is None:
            del self.model[key]
        elif matches and new is not None:
            self.model[key] = new

    @rule(some=st.lists(keys, max_size=4))
    def delete(self, some: list[str]) -> None:
        self.store.delete(some)
        for key in some:
            self.model.pop(key, None)

    @rule(key=keys)
    def get(self, key: str) -> None:
        assert self.store.get(key) == self.model.get(key)

    @rule(
        key=keys,
        cut=st.integers(0, 60),
        after=st.none() | keys,
        limit=st.integers(1, 5),
        values=st.booleans(),
        children=st.booleans(),
    )
    def scan(self, key: str, cut: int, after: str | None, limit: int, values: bool, children: bool) -> None:
        prefix = key[:cut]
        expected: list[tuple[str, bytes | None]]
        below = sorted(each for each in self.model if each.startswith(prefix))
        if children:
            rolled = (prefix + "".join(each[len(prefix) :].partition("/")[:2]) for each in below)
            expected = [(each, None) for each, _ in itertools.groupby(rolled)]
            after = None
        else:
            expected = [(each, self.model[each] if values else None) for each in below if after is None or each > after]
        values = values and not children
        found: list[Any] = []
        for _ in range(len(expected) + 2):
            page = self.store.scan(prefix, after=after, limit=limit, values=values, delimiter="/" if children else None)
            found += page.entries
            after = page.after
            if after is None:
                break
        assert found == expected
