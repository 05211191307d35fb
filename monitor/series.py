"""The live series of one partition: their names, when they were seen, and what they have shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from monitor.records import RecordColumns

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]

NEVER_MS = -(1 << 62)
FOREVER_MS = 1 << 62
KNOWN_VERSIONS = 256  # model versions remembered per series, the newest ones


class SeriesInfo(msgspec.Struct, frozen=True, gc=False):
    """A live series as it is stored between runs."""

    series: str
    model: str
    endpoint: str
    first_seen_ms: int
    last_record_ms: int
    state: bytes | None  # opaque: known model versions and the like


def series_name(parts: Sequence[str]) -> str:
    """Join the parts with "/": absent trailing parts are omitted, "/" and "%" are encoded but in the last.

    >>> series_name(["org/llama", "/v1/chat"])
    'org%2Fllama//v1/chat'
    """
    named = [part.replace("%", "%25").replace("/", "%2F") for part in parts[:-1]] + [parts[-1]]
    while len(named) > 1 and not named[-1]:
        named.pop()
    return "/".join(named)


class _State(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    format: int
    versions: list[str]
    since: int = -1  # offset from which on records are counted here and not under the overflow series
    current: str = ""  # the model version of most records of the newest window that has any


_decoder = msgspec.msgpack.Decoder(_State)


class SeriesTable:
    """Series by a small integer (sid), struct-of-arrays; a series is live from a record to its expiry."""

    def __init__(
        self, series_by: Sequence[str], known: Iterable[SeriesInfo], suffix: str = "", uncounted: str = ""
    ) -> None:
        """`suffix` ends the names of series that are not among the known ones; `uncounted` is the name of
        one that is under no cap.

        Raises ValueError for a state that this version has not written.
        """
        self._series_by = tuple(series_by)
        self._suffix = suffix
        self._uncounted = uncounted
        self._sid_of: dict[str, int] = {}
        self._sid_of_parts: dict[tuple[str, ...], int] = {}  # only saves work, may be emptied
        self._free: list[int] = []
        self.names: list[str] = []  # by sid
        self._labels: list[tuple[str, str]] = []  # model, endpoint
        self._versions: list[dict[str, None]] = []
        self._current: list[str] = []  # the version that most records of the newest window had
        self._states: list[bytes | None] = []  # the versions as they are stored
        self._infos: list[SeriesInfo | None] = []
        self._taken = np.zeros(0, np.bool_)  # the sid belongs to a series
        self.first_ms = np.zeros(0, np.int64)
        self.last_ms = np.zeros(0, np.int64)
        self.admitted = np.zeros(0, np.bool_)  # the series has a place
        self.since = np.zeros(0, np.int64)
        self.count = 0  # series with a place that are under the cap
        self.unsaved: set[int] = set()  # sids that got a place since the last commit
        self._order: Int64 | None = None
        for info in known:
            self.restore(info)
        self.unsaved.clear()

    def restore(self, info: SeriesInfo) -> None:
        """A series as it was stored, with a place. Raises ValueError for a foreign state."""
        sid = self._sid(info.series, info.model, info.endpoint)
        self.admit(sid, int(self.since[sid]) if self.admitted[sid] else -1)
        self.first_ms[sid], self.last_ms[sid] = info.first_seen_ms, info.last_record_ms
        if info.state:
            state = _decode_state(info.state)
            self._versions[sid] = dict.fromkeys(state.versions)
            self._current[sid] = state.current
            self.since[sid] = max(state.since, int(self.since[sid]))
        self._states[sid] = self._infos[sid] = self._order = None

    def find(self, name: str) -> int | None:
        return self._sid_of.get(name)

    def make(self, name: str, model: str, endpoint: str) -> int:
        """sid of a series by its name; it is made where it is missing."""
        return self._sid(name, model, endpoint)

    def admit(self, sid: int, since: int) -> None:
        """Give a series a place. `since`: see `_State`."""
        if self.admitted[sid]:
            return
        self.admitted[sid], self.since[sid] = True, since
        self.count += self.names[sid] != self._uncounted
        self.unsaved.add(sid)

    def dismiss(self, sids: Int64) -> None:
        """Take their places away."""
        for sid in sids[self.admitted[sids]].tolist():
            self.count -= self.names[sid] != self._uncounted
            self.unsaved.discard(sid)
        self.admitted[sids], self.since[sids] = False, -1

    def without_records(self) -> Int64:
        """sids that have a place and are not live."""
        return np.flatnonzero(self.admitted & (self.first_ms == FOREVER_MS))

    def forget_since(self) -> None:
        """The overflow series has ended: nothing is counted under it any more."""
        self.since[:] = -1

    def resolve(self, records: RecordColumns) -> Int32:
        """[n], the sid of every record; a series that was never seen gets one, without being live."""
        columns = [records.text[name] for name in self._series_by]
        code, size = np.zeros(len(records), np.int64), 1
        for column in columns:
            width = len(column.values) + 1
            code, size = code * width + (column.codes + 1), size * width
            if size > 4 * len(records) + 65_536:
                found, code = np.unique(code, return_inverse=True)
                size = len(found)
        example = np.full(size, -1, np.int64)
        example[code] = np.arange(len(code))
        present = np.flatnonzero(example >= 0)
        texts = []
        for column in columns:
            values = [*column.values, ""]
            texts.append([values[i] for i in column.codes[example[present]].tolist()])
        combined = list(zip(*texts, strict=True))
        sids = [self._sid_of_parts.get(parts, -1) for parts in combined]
        table = np.full(size, -1, np.int32)
        table[present] = [
            self._new_sid(parts) if sid < 0 else sid for parts, sid in zip(combined, sids, strict=True)
        ]
        return table[code]

    def _new_sid(self, parts: tuple[str, ...]) -> int:
        named = dict(zip(self._series_by, parts, strict=True))
        name = series_name(parts)
        if name not in self._sid_of:
            name += self._suffix
        sid = self._sid(name, named.get("model", ""), named.get("endpoint", ""))
        self._sid_of_parts[parts] = sid
        return sid

    def _sid(self, name: str, model: str, endpoint: str) -> int:
        sid = self._sid_of.get(name)
        if sid is not None:
            return sid
        if not self._free:
            self._grow()
        sid = self._sid_of[name] = self._free.pop()
        self.names[sid], self._labels[sid], self._taken[sid] = name, (model, endpoint), True
        return sid

    def _grow(self) -> None:
        size = len(self.names)
        added = max(size, 64)
        self._free.extend(range(size + added - 1, size - 1, -1))
        self.names.extend([""] * added)
        self._labels.extend([("", "")] * added)
        self._versions.extend({} for _ in range(added))
        self._current.extend([""] * added)
        self._states.extend([None] * added)
        self._infos.extend([None] * added)
        self._taken = np.concatenate([self._taken, np.zeros(added, np.bool_)])
        self.first_ms = np.concatenate([self.first_ms, np.full(added, FOREVER_MS)])
        self.last_ms = np.concatenate([self.last_ms, np.full(added, NEVER_MS)])
        self.admitted = np.concatenate([self.admitted, np.zeros(added, np.bool_)])
        self.since = np.concatenate([self.since, np.full(added, -1)])

    def seen(self, sid: Int64, first_ms: Int64, last_ms: Int64) -> None:
        """Records of these (distinct) series were counted; it makes them live."""
        changed = (first_ms < self.first_ms[sid]) | (last_ms > self.last_ms[sid])
        if not changed.any():
            return
        changed_sid = sid[changed]
        if (self.first_ms[changed_sid] == FOREVER_MS).any():
            self._order = None
        self.first_ms[sid] = np.minimum(self.first_ms[sid], first_ms)
        self.last_ms[sid] = np.maximum(self.last_ms[sid], last_ms)
        for each in changed_sid.tolist():
            self._infos[each] = None

    def live(self) -> Int64:
        """sids of the live series, ascending by name; the same array until a series comes or goes."""
        if self._order is None:
            live = np.flatnonzero(self.first_ms < FOREVER_MS).tolist()
            self._order = np.array(sorted(live, key=self.names.__getitem__), np.int64)
        return self._order

    def shows_the_same(self, sid: int, versions: Mapping[str, int]) -> bool:
        """True if these are the current version alone, so that there is nothing to remember."""
        current = self._current[sid]
        return len(versions) == 1 and current in versions and current in self._versions[sid]

    def settle(self, sid: int, records: Mapping[str, int]) -> str:
        """The version that most of a window's records have is the current one; returns the one before."""
        before = self._current[sid]
        most = max(records, key=lambda version: (records[version], version == before, version))
        if most != before:
            self._current[sid] = most
            self._states[sid] = self._infos[sid] = None
        return before

    def current(self, sid: int) -> str:
        """The version of most records of the newest window with versions; "" before the first."""
        return self._current[sid]

    def show_versions(self, sid: int, versions: Iterable[str]) -> list[str]:
        """Remember model versions; returns those that are new, none of them the series' first."""
        known = self._versions[sid]
        unknown = [version for version in versions if version not in known]
        if not unknown:
            return []
        is_new = bool(known)
        known.update(dict.fromkeys(unknown))
        while len(known) > KNOWN_VERSIONS:
            del known[next(iter(known))]
        self._states[sid] = self._infos[sid] = None
        return unknown if is_new else []

    def info(self, sid: int) -> SeriesInfo:
        return self.infos(np.array([sid]))[0]

    def infos(self, sids: Int64) -> list[SeriesInfo]:
        found = []
        first_ms, last_ms = self.first_ms[sids].tolist(), self.last_ms[sids].tolist()
        for sid, first, last in zip(sids.tolist(), first_ms, last_ms, strict=True):
            info = self._infos[sid]
            if info is None:
                model, endpoint = self._labels[sid]
                info = SeriesInfo(self.names[sid], model, endpoint, first, last, self._state(sid))
                self._infos[sid] = info
            found.append(info)
        return found

    def _state(self, sid: int) -> bytes | None:
        state = self._states[sid]
        if state is None and (self._versions[sid] or self.since[sid] >= 0):
            kept = _State(1, list(self._versions[sid]), int(self.since[sid]), self._current[sid])
            state = self._states[sid] = msgspec.msgpack.encode(kept)
        return state

    def expire(self, sids: Int64) -> tuple[str, ...]:
        """These series are live no longer and remember nothing. Returns their names."""
        self.dismiss(sids)
        self.first_ms[sids], self.last_ms[sids] = FOREVER_MS, NEVER_MS
        for sid in sids.tolist():
            self._versions[sid], self._states[sid], self._infos[sid] = {}, None, None
            self._current[sid] = ""
        self._order = None
        return tuple(self.names[sid] for sid in sids.tolist())

    def forget_all_but(self, held: Sequence[Int32]) -> None:
        """Free every series that is neither live nor held."""
        idle = np.flatnonzero(self._taken & (self.first_ms == FOREVER_MS))
        if not len(idle):
            return
        if held:
            idle = np.setdiff1d(idle, np.concatenate(held))
        self.dismiss(idle)
        for sid in idle.tolist():
            del self._sid_of[self.names[sid]]
            self.names[sid] = ""
            self._free.append(sid)
        self._taken[idle] = False
        if len(idle):
            self._sid_of_parts.clear()


def check_state(_: str, state: bytes) -> None:
    """Raises ValueError for a state that this version has not written."""
    _decode_state(state)


def _decode_state(state: bytes) -> _State:
    try:
        decoded = _decoder.decode(state)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a series state: {error}") from None
    if decoded.format != 1:
        raise ValueError(f"series state of format {decoded.format}")
    return decoded
