"""What full-size games have that tiny ones do without: the official mixture of rooms, wishes and clutter.

Shares and weights are counted over the official training games.
"""

from __future__ import annotations


def _weights(text: str) -> dict[str, int]:
    """``"Mug 102, Cup 71"`` -> ``{"Mug": 102, "Cup": 71}``."""
    return {name: int(weight) for name, weight in (item.split() for item in text.split(", "))}


#: task type -> room type -> games
ROOM_WEIGHTS = {
    "pick_and_place_simple": _weights("bathroom 264, bedroom 237, living 210, kitchen 79"),
    "look_at_obj_in_light": _weights("bedroom 257, living 51"),
    "pick_clean_then_place_in_recep": _weights("kitchen 501, bathroom 149"),
    "pick_heat_then_place_in_recep": _weights("kitchen 459"),
    "pick_cool_then_place_in_recep": _weights("kitchen 533"),
    "pick_two_obj_and_place": _weights("bedroom 240, bathroom 233, living 216, kitchen 124"),
}
#: task type -> wanted object type -> games; what is possible and not listed counts as one
WANTED = {
    "pick_and_place_simple": _weights(
        "ToiletPaper 57, KeyChain 52, CellPhone 51, SoapBottle 51, SprayBottle 50, Candle 49, Book 47, CreditCard 33,"
        " RemoteControl 33, CD 30, HandTowel 29, Pencil 24, AlarmClock 22, Statue 22, Laptop 21, Pen 20, Box 19,"
        " Newspaper 17, Pillow 17, TissueBox 16, PepperShaker 12, Watch 12, Cloth 10, Vase 10, DishSponge 9,"
        " Glassbottle 9, Kettle 9, Tomato 8, ButterKnife 6, SoapBar 6, Bowl 5, Pan 5, WineBottle 5, Egg 4"
    ),
    "look_at_obj_in_light": _weights(
        "Pillow 47, AlarmClock 41, CD 33, Book 30, Pencil 23, Laptop 20, Pen 18, Bowl 17, Newspaper 14, Statue 11,"
        " TissueBox 10, Box 9, CellPhone 9, Watch 6, CreditCard 5, KeyChain 4, Mug 4, Vase 4, Plate 3"
    ),
    "pick_clean_then_place_in_recep": _weights(
        "SoapBar 84, Cloth 47, Kettle 47, Ladle 38, Knife 33, Mug 32, Lettuce 31, Spatula 29, Pan 28, Bowl 26,"
        " ButterKnife 26, Spoon 26, Tomato 26, Apple 25, Potato 25, DishSponge 23, Egg 23, Fork 23, Plate 22, Cup 20,"
        " Pot 16"
    ),
    "pick_heat_then_place_in_recep": _weights(
        "Mug 102, Cup 71, Egg 70, Potato 60, Tomato 53, Apple 52, Plate 39, Bread 12"
    ),
    "pick_cool_then_place_in_recep": _weights(
        "Mug 74, Pot 57, Bowl 49, Pan 46, Apple 44, Potato 44, Bread 40, Cup 40, Lettuce 37, Tomato 34, Egg 25,"
        " Plate 25, WineBottle 18"
    ),
    "pick_two_obj_and_place": _weights(
        "SprayBottle 58, CellPhone 53, CreditCard 52, SoapBottle 44, RemoteControl 43, ToiletPaper 43, Book 37,"
        " Newspaper 36, Candle 35, KeyChain 34, Pen 28, Pencil 28, CD 26, TissueBox 26, SaltShaker 25, PepperShaker 22,"
        " AlarmClock 21, HandTowel 16, SoapBar 16, Cup 14, Vase 14, Watch 13, Laptop 11, Lettuce 11, Statue 10,"
        " Bowl 9, DishSponge 7, Pillow 7, Cloth 6, Kettle 6, Spatula 6, WineBottle 6"
    ),
}
#: task type -> target receptacle type -> games; what is possible and not listed counts as one
TARGETS = {
    "pick_and_place_simple": _weights(
        "Toilet 89, ArmChair 71, Desk 57, SideTable 57, Sofa 53, GarbageCan 53, Shelf 52, Dresser 45, CoffeeTable 43,"
        " ToiletPaperHanger 42, Drawer 39, CounterTop 35, Cabinet 33, DiningTable 27, Ottoman 20, Bed 19, Safe 18,"
        " Microwave 15, Cart 12, Fridge 7, StoveBurner 3"
    ),
    "pick_clean_then_place_in_recep": _weights(
        "DiningTable 99, CounterTop 96, Drawer 82, Cabinet 58, Microwave 50, Fridge 40, SideTable 40, Shelf 40,"
        " StoveBurner 37, Toilet 32, CoffeeMachine 32, GarbageCan 31, Cart 11, Dresser 2"
    ),
    "pick_heat_then_place_in_recep": _weights(
        "Fridge 105, Cabinet 71, CounterTop 66, GarbageCan 55, CoffeeMachine 55, SideTable 44, DiningTable 43, Shelf 20"
    ),
    "pick_cool_then_place_in_recep": _weights(
        "Microwave 97, DiningTable 93, CounterTop 89, Cabinet 64, CoffeeMachine 47, GarbageCan 46, Shelf 45,"
        " StoveBurner 39, SideTable 13"
    ),
    "pick_two_obj_and_place": _weights(
        "Drawer 112, ArmChair 68, Cabinet 67, Toilet 59, Desk 55, Shelf 52, GarbageCan 52, CoffeeTable 50, Dresser 48,"
        " Sofa 47, SideTable 42, CounterTop 37, Bed 31, DiningTable 29, Fridge 19, Cart 16, Microwave 11, Ottoman 11,"
        " Safe 7"
    ),
}
#: weights of one, two, three … things of the wanted type
WANTED_INSTANCES = {
    "pick_and_place_simple": (37, 28, 21, 14),
    "look_at_obj_in_light": (35, 28, 21, 16),
    "pick_clean_then_place_in_recep": (32, 31, 21, 17),
    "pick_heat_then_place_in_recep": (27, 27, 25, 21),
    "pick_cool_then_place_in_recep": (44, 29, 18, 9),
    "pick_two_obj_and_place": (0, 43, 33, 24),
}
#: the same for other types where the official rooms differ from one to three alike
INSTANCES: dict[str, dict[str, tuple[int, ...]]] = {
    "kitchen": {
        "Bread": (56, 32, 12), "Kettle": (44, 37, 19), "Lettuce": (42, 35, 23), "Pan": (70, 26, 4),
        "Plate": (42, 34, 24), "Pot": (53, 37, 9), "Vase": (0, 48, 52), "Book": (60, 27, 13),
    },
    "living": {
        "Book": (48, 32, 20), "Bowl": (43, 39, 17), "Box": (70, 24, 5), "Candle": (18, 20, 62), "Laptop": (66, 27, 7),
        "Newspaper": (47, 31, 22), "Pillow": (89, 11), "Plate": (47, 39, 15), "Statue": (25, 39, 33),
        "Vase": (19, 27, 34, 20), "WateringCan": (94, 4, 2),
    },
    "bedroom": {
        "AlarmClock": (50, 32, 18), "Book": (45, 33, 22), "Bowl": (61, 28, 11), "Laptop": (52, 35, 13),
        "Pillow": (42, 48, 10), "Statue": (62, 26, 12), "Vase": (18, 51, 31),
    },
    "bathroom": {
        "HandTowel": (84, 16), "TissueBox": (47, 30, 22), "ToiletPaper": (0, 70, 30), "Towel": (86, 14),
    },
}
EVEN_INSTANCES = (1, 1, 1)

#: how often a further receptacle of a type stands where the one before it stands
BESIDE_ITS_KIND = {
    "kitchen": {"StoveBurner": 0.45, "Drawer": 0.1, "Cabinet": 0.08},
    "living": {"DiningTable": 0.33, "Drawer": 0.11, "Shelf": 0.04},
    "bedroom": {"Drawer": 0.16, "Cabinet": 0.14, "Shelf": 0.12},
    "bathroom": {"Drawer": 0.26, "Cabinet": 0.16},
}
#: how often the first receptacle of a type stands where one of another type stands
BESIDE_ANOTHER: dict[str, dict[str, tuple[str, float]]] = {
    "kitchen": {"Toaster": ("CounterTop", 0.3), "CoffeeMachine": ("CounterTop", 0.22), "Drawer": ("Cabinet", 0.11)},
    "living": {"Shelf": ("TVStand", 0.3), "Drawer": ("SideTable", 0.1)},
    "bedroom": {"Drawer": ("Dresser", 0.3), "Shelf": ("Cabinet", 0.2)},
    "bathroom": {"GarbageCan": ("Cabinet", 0.08), "HandTowelHolder": ("TowelHolder", 0.04)},
}

#: things on the floor or on walls, which cannot be reached: room type -> type -> (most, chance of each)
FLOOR: dict[str, dict[str, tuple[int, float]]] = {
    "kitchen": {
        "Chair": (3, 0.42), "StoveKnob": (4, 1.0), "LightSwitch": (1, 1.0), "Window": (2, 0.6), "Blinds": (1, 0.2),
        "Mirror": (1, 0.09),
    },
    "living": {
        "Chair": (6, 0.45), "FloorLamp": (1, 1.0), "LightSwitch": (1, 1.0), "Window": (4, 0.65), "Curtains": (1, 0.48),
        "Painting": (3, 0.62), "Boots": (1, 0.2), "Mirror": (1, 0.1),
    },
    "bedroom": {
        "Chair": (2, 0.5), "LightSwitch": (1, 1.0), "Window": (2, 0.75), "Mirror": (1, 0.94), "Blinds": (2, 0.7),
        "Painting": (1, 0.65), "Poster": (1, 0.35), "BaseballBat": (1, 0.42), "BasketBall": (1, 0.37),
        "TennisRacket": (1, 0.4), "Boots": (1, 0.11), "Cloth": (2, 0.17),
    },
    "bathroom": {
        "LightSwitch": (1, 1.0), "Mirror": (1, 0.94), "Window": (1, 0.95), "Plunger": (1, 1.0), "ScrubBrush": (1, 1.0),
        "ShowerDoor": (1, 0.58), "ShowerGlass": (1, 0.39), "Footstool": (1, 0.04),
    },
}
#: those of them that the engine knows as portable
PORTABLE_ON_FLOOR = frozenset(
    {"Boots", "BaseballBat", "BasketBall", "TennisRacket", "Cloth", "Plunger", "ScrubBrush", "Footstool"}
)
#: share of them that are near a receptacle, so that ``look`` shows them there
FLOOR_NEAR_RECEPTACLE = 0.4

#: where things may be put although they do not tend to lie there: receptacle type -> object types
MORE_ROOM: dict[str, str] = {
    "ArmChair": "Cloth", "Bed": "BaseballBat BasketBall TennisRacket", "BathtubBasin": "HandTowel",
    "Cabinet": "HandTowel Newspaper Plunger WateringCan", "Cart": "Cloth HandTowel SoapBar SoapBottle ToiletPaper",
    "CounterTop": "AlarmClock CD KeyChain Laptop", "Desk": "BasketBall Cloth TennisRacket WateringCan",
    "DiningTable": "BaseballBat BasketBall Cloth TennisRacket WateringCan",
    "Drawer": "HandTowel Newspaper SprayBottle WateringCan",
    "Dresser": "BasketBall Cloth SprayBottle TennisRacket ToiletPaper WateringCan", "Fridge": "WineBottle",
    "GarbageCan": "Bread Cloth HandTowel Lettuce Newspaper SoapBar TissueBox", "LaundryHamper": "Cloth",
    "Microwave": "Bread Glassbottle Plate Tomato",
    "Ottoman": "Book Box CellPhone CreditCard KeyChain Laptop Newspaper Pillow RemoteControl",
    "Safe": "CD CellPhone CreditCard Statue Vase",
    "Shelf": "Glassbottle HandTowel Kettle Pot RemoteControl SoapBar ToiletPaper",
    "SideTable": (
        "Apple BaseballBat BasketBall Bread ButterKnife Cloth Cup DishSponge Egg HandTowel Kettle Knife Pan Pot Potato"
        " SoapBar SoapBottle Spatula TennisRacket ToiletPaper WineBottle"
    ),
    "SinkBasin": "HandTowel Mug Pan Pot",
}
