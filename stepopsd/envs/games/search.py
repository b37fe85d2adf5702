"""Where to look first: the order in which the expert searches a room, which also says how well a thing is hidden."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from stepopsd.envs.games.rooms import OPENABLE, PLACES

_UNLISTED_SHARE = 0.5  #: chance, in per cent, for kinds of place in which we never saw such a thing
_OPENABLE = frozenset(kind.lower() for kind in OPENABLE)
#: room type -> object type -> receptacle type -> share, in the engine's lower-case names
SHARES: dict[str, dict[str, dict[str, float]]] = {
    room: {
        kind.lower(): {where.lower(): float(share) for where, share in shares.items()}
        for kind, shares in table.items()
    }
    for room, table in PLACES.items()
}


def search_order(
    unseen: Iterable[str],
    places: Collection[str],
    shares: Mapping[str, Mapping[str, float]],
    wanted: Iterable[str],
    skip: Collection[str] = (),
) -> list[str]:
    """Unseen places, the most promising first; equally promising ones stay in the order given.

    A place promises the share of wanted things that lie in places of its kind, divided among the places of that
    kind in the room and halved where something has to be opened.

    Args:
        unseen: Names such as ``drawer 2``.
        places: Names of all places of the room.
        shares: ``SHARES`` of the room type.
        wanted: Object types that are looked for.
        skip: Places that promise nothing.
    """
    number = Counter(kind_of(place) for place in places)
    wanted = tuple(wanted)

    def promise(place: str) -> float:
        kind = kind_of(place)
        share = sum(shares.get(thing, {}).get(kind, _UNLISTED_SHARE) for thing in wanted)
        return share / number[kind] / (2 if kind in _OPENABLE else 1) * (place not in skip)

    return sorted(unseen, key=promise, reverse=True)


def kind_of(name: str) -> str:
    """``drawer`` of ``drawer 2``."""
    return name.split(" ")[0]


def in_order(names: Iterable[str]) -> list[str]:
    """Names by kind, then by number."""
    return sorted(names, key=lambda name: (kind_of(name), int(name.split(" ")[1])))
