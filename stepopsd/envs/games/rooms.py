"""What stands and lies where: receptacles, objects and plausible places for each of the four room types.

The shares (in per cent) and ranges are rounded figures, counted over the official training games.
"""

from __future__ import annotations

from functools import cache

from stepopsd.envs.games.full_rooms import MORE_ROOM

ROOMS = ("kitchen", "living", "bedroom", "bathroom")


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())



#: object type -> "receptacle type share, ..." : where an object of that type tends to lie in that room type
_KITCHEN = {
    "Apple": "Fridge 24, CounterTop 24, DiningTable 15, Microwave 13, GarbageCan 13, SinkBasin 9",
    "Book": "CounterTop 65, Cabinet 14, DiningTable 11, Drawer 5, Shelf 4",
    "Bowl": "Cabinet 35, CounterTop 20, Fridge 20, DiningTable 15, Microwave 3, SinkBasin 3, Shelf 2",
    "Bread": "CounterTop 55, DiningTable 31, Fridge 12",
    "ButterKnife": "CounterTop 58, DiningTable 26, Drawer 8, SinkBasin 5",
    "CellPhone": "Drawer 43, CounterTop 41, DiningTable 17",
    "CreditCard": "CounterTop 46, Drawer 37, Shelf 17",
    "Cup": "Cabinet 24, CounterTop 21, Fridge 20, DiningTable 14, SinkBasin 9, Microwave 8, Shelf 2",
    "DishSponge": "CounterTop 26, Cabinet 24, Drawer 21, DiningTable 13, SinkBasin 7, GarbageCan 5",
    "Egg": "Fridge 25, CounterTop 24, GarbageCan 13, SinkBasin 12, Microwave 12, DiningTable 12",
    "Fork": "CounterTop 44, DiningTable 24, Drawer 22, SinkBasin 9, SideTable 2",
    "Glassbottle": "Cabinet 30, CounterTop 26, DiningTable 14, Fridge 9, SinkBasin 9, GarbageCan 7",
    "Kettle": "StoveBurner 41, CounterTop 25, Cabinet 25, DiningTable 7, SinkBasin 2",
    "Knife": "CounterTop 48, DiningTable 25, Drawer 21, SinkBasin 5",
    "Ladle": "CounterTop 40, Cabinet 25, Drawer 18, DiningTable 14, SinkBasin 2",
    "Lettuce": "CounterTop 41, DiningTable 28, Fridge 23, SinkBasin 5, SideTable 2",
    "Mug": "CounterTop 26, CoffeeMachine 20, Cabinet 16, Fridge 13, DiningTable 10, Microwave 7",
    "Pan": "StoveBurner 51, CounterTop 33, Cabinet 7, DiningTable 5, Fridge 4",
    "PaperTowelRoll": "CounterTop 57, DiningTable 16, GarbageCan 15, Shelf 9, SideTable 2",
    "Pen": "CounterTop 39, DiningTable 34, Drawer 21, GarbageCan 5",
    "Pencil": "Drawer 41, CounterTop 30, DiningTable 19, GarbageCan 10",
    "PepperShaker": "Cabinet 33, CounterTop 30, DiningTable 17, Drawer 15, Shelf 3, SideTable 2",
    "Plate": "Cabinet 40, CounterTop 30, DiningTable 16, Fridge 9, Shelf 2, SinkBasin 2",
    "Pot": "StoveBurner 73, CounterTop 14, DiningTable 4, Fridge 4, Cabinet 4",
    "Potato": "CounterTop 28, Fridge 26, DiningTable 16, Microwave 11, SinkBasin 11, GarbageCan 7",
    "SaltShaker": "Cabinet 32, CounterTop 31, DiningTable 17, Drawer 14, Shelf 3, SideTable 2",
    "SoapBottle": "CounterTop 32, Cabinet 31, DiningTable 21, GarbageCan 10, Shelf 3",
    "Spatula": "CounterTop 44, DiningTable 25, Drawer 21, SinkBasin 9",
    "Spoon": "CounterTop 37, Drawer 28, DiningTable 22, SinkBasin 11, SideTable 2",
    "SprayBottle": "CounterTop 33, Cabinet 33, DiningTable 22, GarbageCan 12",
    "Statue": "CounterTop 51, Shelf 44, DiningTable 5",
    "Tomato": "Fridge 33, CounterTop 29, DiningTable 20, GarbageCan 9, SinkBasin 6, SideTable 2",
    "Vase": "CounterTop 34, Shelf 32, Cabinet 31, DiningTable 3",
    "WineBottle": "CounterTop 37, Cabinet 26, DiningTable 24, GarbageCan 9, Shelf 3",
}
_LIVING = {
    "Book": "CoffeeTable 27, Dresser 21, Sofa 21, ArmChair 12, DiningTable 8, SideTable 8",
    "Bowl": "DiningTable 34, CoffeeTable 33, TVStand 18, SideTable 8, Shelf 7",
    "Box": "DiningTable 25, Sofa 24, CoffeeTable 23, SideTable 8, ArmChair 4, Cabinet 4, Dresser 4",
    "Candle": "SideTable 41, CoffeeTable 28, DiningTable 20, TVStand 6, Drawer 3, Dresser 2",
    "CellPhone": "Dresser 20, Sofa 17, SideTable 15, CoffeeTable 15, Drawer 11, DiningTable 8, ArmChair 6",
    "CreditCard": "Sofa 19, ArmChair 17, CoffeeTable 14, Drawer 13, SideTable 10, DiningTable 9, TVStand 7",
    "DeskLamp": "SideTable 91, CoffeeTable 9",
    "KeyChain": "CoffeeTable 19, Drawer 15, SideTable 15, Sofa 14, ArmChair 10, TVStand 7, DiningTable 7",
    "Laptop": "Sofa 27, CoffeeTable 24, DiningTable 20, Dresser 8, SideTable 8, ArmChair 5, TVStand 5",
    "Newspaper": "Sofa 22, CoffeeTable 18, DiningTable 15, SideTable 12, ArmChair 10, Shelf 9, Dresser 7",
    "Pen": "CoffeeTable 33, Dresser 24, SideTable 20, TVStand 6, Drawer 6, GarbageCan 4, Shelf 4",
    "Pencil": "SideTable 31, CoffeeTable 30, Drawer 10, Dresser 7, GarbageCan 6, TVStand 6, Shelf 6",
    "Pillow": "Sofa 77, ArmChair 21",
    "Plate": "DiningTable 48, CoffeeTable 26, Shelf 12, SideTable 10, Dresser 2, TVStand 2",
    "RemoteControl": "CoffeeTable 23, Sofa 20, ArmChair 12, SideTable 12, DiningTable 10, Dresser 8",
    "Statue": "CoffeeTable 27, DiningTable 19, Shelf 19, SideTable 19, TVStand 8, Dresser 8",
    "TissueBox": "CoffeeTable 36, DiningTable 19, SideTable 18, Shelf 10, TVStand 7, Drawer 5",
    "Vase": "Shelf 34, CoffeeTable 21, DiningTable 15, SideTable 12, Dresser 10, TVStand 5, Cabinet 2",
    "Watch": "CoffeeTable 27, Drawer 20, SideTable 19, Dresser 11, DiningTable 10, TVStand 10, Shelf 4",
    "WateringCan": "CoffeeTable 49, Shelf 43, SideTable 8",
}
_BEDROOM = {
    "AlarmClock": "Desk 35, Shelf 21, SideTable 19, Dresser 17, DiningTable 7",
    "Book": "Bed 50, Desk 20, Drawer 12, Dresser 5, SideTable 4, DiningTable 3, Cabinet 3, ArmChair 2",
    "Bowl": "Desk 44, Shelf 29, Dresser 15, DiningTable 6, SideTable 4, CounterTop 2",
    "Box": "Desk 58, Shelf 42",
    "CD": "Drawer 28, Desk 19, Dresser 14, SideTable 13, Shelf 9, GarbageCan 8, DiningTable 6, Cabinet 2",
    "CellPhone": "Bed 29, Desk 17, Drawer 16, Dresser 10, SideTable 10, Shelf 8, DiningTable 3, ArmChair 3",
    "CreditCard": "Drawer 28, Shelf 18, Desk 18, SideTable 16, Dresser 12, DiningTable 4, ArmChair 4",
    "DeskLamp": "Desk 35, SideTable 28, Dresser 25, Shelf 11",
    "KeyChain": "Drawer 26, Desk 18, SideTable 16, Shelf 15, Dresser 14, Safe 4, DiningTable 4, ArmChair 3",
    "Laptop": "Bed 73, Desk 19, Dresser 4, DiningTable 2",
    "Mug": "Desk 36, Shelf 18, Dresser 16, SideTable 16, DiningTable 9, Cabinet 4",
    "Pen": "Desk 27, Drawer 18, Shelf 16, Dresser 15, SideTable 15, DiningTable 6, GarbageCan 2",
    "Pencil": "Desk 25, Drawer 18, SideTable 18, Shelf 17, Dresser 11, DiningTable 6, GarbageCan 5",
    "Pillow": "Bed 99",
    "RemoteControl": "Drawer 34, Desk 29, SideTable 14, CounterTop 8, ArmChair 5, Dresser 4, DiningTable 4",
    "Statue": "Shelf 42, Dresser 28, Desk 25, SideTable 4",
    "TeddyBear": "Bed 100",
    "TissueBox": "Desk 34, Drawer 24, DiningTable 14, Shelf 14, SideTable 11, Dresser 3",
    "Vase": "Shelf 44, Dresser 35, Desk 11, SideTable 11",
    "Watch": "Drawer 28, Shelf 23, DiningTable 16, Desk 14, Dresser 13, SideTable 6",
}
_BATHROOM = {
    "Candle": "Toilet 30, CounterTop 29, Cabinet 15, Drawer 14, Shelf 7, SideTable 2, Cart 2",
    "Cloth": "BathtubBasin 28, Cabinet 19, CounterTop 16, Drawer 16, SinkBasin 8, Toilet 5, Shelf 5",
    "DishSponge": "CounterTop 19, Drawer 19, BathtubBasin 16, Toilet 10, Shelf 9, SinkBasin 9, Cart 8",
    "HandTowel": "HandTowelHolder 89, CounterTop 6, Toilet 3",
    "PaperTowelRoll": "CounterTop 35, Toilet 31, Shelf 17, GarbageCan 11, Cart 6",
    "SoapBar": "CounterTop 19, Toilet 16, SinkBasin 14, Cabinet 13, Drawer 12, BathtubBasin 11",
    "SoapBottle": "CounterTop 28, Toilet 25, Cabinet 20, GarbageCan 10, Shelf 8, Drawer 3, Dresser 2",
    "SprayBottle": "CounterTop 30, Toilet 27, Cabinet 15, GarbageCan 13, Shelf 6, Cart 4, SideTable 2",
    "TissueBox": "CounterTop 33, Shelf 27, Drawer 20, Cart 6, Toilet 5, Cabinet 5, SideTable 3",
    "ToiletPaper": "Toilet 23, CounterTop 21, ToiletPaperHanger 13, Drawer 12, Cabinet 12, GarbageCan 9",
    "Towel": "TowelHolder 97, CounterTop 3",
}

#: receptacle type -> (chance that the room has any, how many: drawn evenly from these)
FULL_RECEPTACLES: dict[str, dict[str, tuple[float, tuple[int, ...]]]] = {
    "kitchen": {
        "CounterTop": (1, (1, 2, 2, 2, 3, 3, 4)), "Cabinet": (1, (3, 4, 9, 10, 11, 13, 13, 16, 19, 20, 21, 26)),
        "Drawer": (0.97, (1, 2, 3, 3, 4, 4, 5, 6, 8, 12, 14)), "SinkBasin": (1, (1,)), "Fridge": (1, (1,)),
        "Microwave": (1, (1,)), "StoveBurner": (1, (4,)), "CoffeeMachine": (1, (1,)), "Toaster": (1, (1,)),
        "GarbageCan": (1, (1,)), "DiningTable": (0.55, (1, 1, 1, 2)), "Shelf": (0.16, (3,)), "SideTable": (0.11, (1,)),
        "Safe": (0.04, (1,)),
    },
    "living": {
        "Sofa": (1, (1, 1, 1, 2)), "ArmChair": (0.93, (1, 1, 2)), "CoffeeTable": (0.85, (1, 1, 1, 2)),
        "SideTable": (0.78, (1, 1, 2, 3)), "Drawer": (0.78, (1, 1, 2, 4, 4, 6, 7, 8, 12)),
        "DiningTable": (0.5, (1, 1, 1, 2)), "Dresser": (0.33, (1,)), "TVStand": (0.44, (1, 1, 1, 2)),
        "Shelf": (0.35, (1, 3, 5, 8, 12)), "Cabinet": (0.11, (1, 4, 8)), "Ottoman": (0.15, (1,)),
        "GarbageCan": (1, (1,)), "Safe": (0.04, (1,)),
    },
    "bedroom": {
        "Bed": (1, (1, 1, 1, 1, 1, 2)), "Desk": (0.67, (1, 1, 1, 1, 2)), "SideTable": (0.67, (1, 1, 2)),
        "Drawer": (0.96, (2, 2, 3, 3, 5, 5, 6, 9, 12, 15)), "Dresser": (0.48, (1, 1, 1, 1, 2)),
        "Shelf": (0.67, (1, 1, 2, 5, 7, 12)), "ArmChair": (0.22, (1, 1, 2)), "DiningTable": (0.15, (1,)),
        "Cabinet": (0.15, (1, 2, 4)), "LaundryHamper": (0.26, (1,)), "Safe": (0.15, (1,)), "GarbageCan": (1, (1,)),
    },
    "bathroom": {
        "SinkBasin": (1, (1, 2)), "Toilet": (1, (1,)), "CounterTop": (0.85, (1, 1, 1, 1, 2)),
        "Cabinet": (0.48, (2, 4, 4, 4, 5)), "Drawer": (0.56, (1, 2, 4, 6, 8)), "BathtubBasin": (0.7, (1,)),
        "Shelf": (0.26, (1, 1, 2, 3)), "Cart": (0.07, (1,)), "SideTable": (0.07, (1,)), "Dresser": (0.07, (1,)),
        "GarbageCan": (1, (1,)), "TowelHolder": (1, (1, 1, 2)), "HandTowelHolder": (1, (1, 1, 2)),
        "ToiletPaperHanger": (1, (1,)),
    },
}

#: receptacle type -> (chance that the room has any, fewest, most)
TINY_RECEPTACLES: dict[str, dict[str, tuple[float, int, int]]] = {
    "kitchen": {
        "CounterTop": (1, 1, 2), "Cabinet": (0.8, 1, 2), "Drawer": (0.5, 1, 2), "SinkBasin": (1, 1, 1),
        "Fridge": (1, 1, 1), "Microwave": (1, 1, 1), "StoveBurner": (0.4, 1, 1), "CoffeeMachine": (0.4, 1, 1),
        "GarbageCan": (0.4, 1, 1), "DiningTable": (0.5, 1, 1), "Shelf": (0.2, 1, 1),
    },
    "living": {
        "Sofa": (1, 1, 1), "ArmChair": (0.6, 1, 1), "CoffeeTable": (0.7, 1, 1), "SideTable": (0.8, 1, 2),
        "Drawer": (0.5, 1, 2), "DiningTable": (0.4, 1, 1), "Dresser": (0.3, 1, 1), "TVStand": (0.4, 1, 1),
        "Shelf": (0.3, 1, 2), "GarbageCan": (0.3, 1, 1),
    },
    "bedroom": {
        "Bed": (1, 1, 1), "Desk": (0.7, 1, 1), "SideTable": (0.6, 1, 2), "Drawer": (0.7, 1, 2),
        "Dresser": (0.4, 1, 1), "Shelf": (0.5, 1, 2), "ArmChair": (0.2, 1, 1), "DiningTable": (0.2, 1, 1),
        "Safe": (0.2, 1, 1), "GarbageCan": (0.4, 1, 1),
    },
    "bathroom": {
        "SinkBasin": (1, 1, 1), "Toilet": (1, 1, 1), "CounterTop": (0.8, 1, 1), "Cabinet": (0.5, 1, 2),
        "Drawer": (0.5, 1, 2), "BathtubBasin": (0.5, 1, 1), "Shelf": (0.3, 1, 1), "Cart": (0.1, 1, 1),
        "GarbageCan": (0.6, 1, 1), "TowelHolder": (0.5, 1, 1), "HandTowelHolder": (0.4, 1, 1),
        "ToiletPaperHanger": (0.6, 1, 1),
    },
}

#: object types that only some rooms have, with the share of rooms that do; all others are always there
PRESENCE: dict[str, dict[str, float]] = {
    "kitchen": {
        "Book": 0.1, "CellPhone": 0.1, "CreditCard": 0.07, "Glassbottle": 0.24, "Kettle": 0.52, "Ladle": 0.38,
        "PaperTowelRoll": 0.33, "Pen": 0.07, "Pencil": 0.07, "SprayBottle": 0.08, "Statue": 0.14,
        "Vase": 0.14, "WineBottle": 0.44,
    },
    "living": {
        "Book": 0.31, "Bowl": 0.14, "Candle": 0.11, "CellPhone": 0.2, "DeskLamp": 0.22, "Newspaper": 0.6,
        "Pen": 0.22, "Pencil": 0.17, "Plate": 0.31, "TissueBox": 0.33, "Vase": 0.55, "Watch": 0.54,
        "WateringCan": 0.54,
    },
    "bedroom": {
        "Bowl": 0.51, "Box": 0.48, "DeskLamp": 0.67, "Mug": 0.47, "RemoteControl": 0.1, "Statue": 0.14,
        "TeddyBear": 0.32, "TissueBox": 0.16, "Vase": 0.05, "Watch": 0.07,
    },
    "bathroom": {"DishSponge": 0.18, "PaperTowelRoll": 0.12, "TissueBox": 0.23},
}

#: things that cannot be picked up, seen in full-size rooms: type -> (share of rooms, where)
SCENERY: dict[str, dict[str, tuple[float, str]]] = {
    "kitchen": {"HousePlant": (0.37, "CounterTop 76, DiningTable 24")},
    "living": {
        "HousePlant": (0.9, "SideTable 49, CoffeeTable 18, Dresser 18, DiningTable 10, TVStand 6"),
        "Television": (0.9, "TVStand 50, Dresser 44, CoffeeTable 6"),
    },
    "bedroom": {
        "HousePlant": (0.27, "Shelf 44, Desk 37, Dresser 10"), "Television": (0.1, "Dresser 100"),
    },
    "bathroom": {"HousePlant": (0.04, "SideTable 100")},
}

SINGLE = _names("DeskLamp Box TeddyBear Towel PaperTowelRoll")  #: one of them per room
OPENABLE = _names("Fridge Cabinet Microwave Drawer Safe")
HOLDERS = _names("Bowl Box Cup Mug Pan Plate Pot")  #: objects that are also containers
CLEANABLE = _names(
    "Apple Bowl ButterKnife Cloth Cup DishSponge Egg Fork Kettle Knife Ladle Lettuce Mug Pan Plate Pot Potato"
    " SoapBar Spatula Spoon Tomato"
)
HEATABLE = _names("Apple Bread Cup Egg Mug Plate Potato Tomato")
COOLABLE = _names("Apple Bowl Bread Cup Egg Lettuce Mug Pan Plate Pot Potato Tomato WineBottle")
SLICEABLE = _names("Apple Bread Egg Lettuce Potato Tomato")
KNIVES = ("Knife", "ButterKnife")  #: what the engine lets an agent slice with
LAMP = "DeskLamp"  #: the only lamp that the engine lets an agent switch on, because it stands on something

#: appliance that changes a state; a changed object is never to be put straight back there
APPLIANCE = {
    "pick_clean_then_place_in_recep": "SinkBasin",
    "pick_heat_then_place_in_recep": "Microwave",
    "pick_cool_then_place_in_recep": "Fridge",
}
#: what the engine calls using it
VERB = {
    "pick_clean_then_place_in_recep": "clean",
    "pick_heat_then_place_in_recep": "heat",
    "pick_cool_then_place_in_recep": "cool",
}


def _shares(text: str) -> dict[str, int]:
    """``"Fridge 24, CounterTop 24"`` -> ``{"Fridge": 24, "CounterTop": 24}``."""
    return {name: int(share) for name, share in (item.split() for item in text.split(", "))}


#: room -> object type -> receptacle type -> share
PLACES: dict[str, dict[str, dict[str, int]]] = {
    room: {kind: _shares(text) for kind, text in table.items()}
    for room, table in zip(ROOMS, (_KITCHEN, _LIVING, _BEDROOM, _BATHROOM), strict=True)
}
SCENERY_PLACES: dict[str, dict[str, dict[str, int]]] = {
    room: {kind: _shares(text) for kind, (_, text) in table.items()} for room, table in SCENERY.items()
}


@cache
def can_contain(size: str = "tiny") -> frozenset[tuple[str, str]]:
    """Every (receptacle type, object type) pair for which the object may be put there, in any room."""
    usual = frozenset(
        (where, kind) for table in PLACES.values() for kind, shares in table.items() for where in shares
    )
    if size == "tiny":
        return usual
    return usual | {(where, kind) for where, kinds in MORE_ROOM.items() for kind in kinds.split()}
