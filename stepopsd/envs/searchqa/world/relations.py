"""What can be said of whom: relations between kinds of entities, how passages tell them and how questions ask."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Relation:
    """A property that has one value for every entity of a kind.

    Attributes:
        key: Name.
        subject: Kind of entity that has it.
        object: Kind of its value: a kind of entity, ``year``, or a closed list in ``VALUES``.
        tells: Wordings of a passage; all share a key word that no question uses, so that the wording of a query
            decides what is found where a passage holds a single fact.
        asks: Wordings of a question.
        noun: A phrase for the value, to ask on from it.
    """

    key: str
    subject: str
    object: str
    tells: tuple[str, ...]
    asks: tuple[str, ...]
    noun: str


RELATIONS = {
    relation.key: relation
    for relation in (
        Relation("birthplace", "person", "city",
                 ("{s} is a native of {o} .", "A native of {o} , {s} left home early ."),
                 ("Where was {s} born?", "In which city was {s} born?"), "the birthplace of {s}"),
        Relation("birth_year", "person", "year",
                 ("The life of {s} began in {o} .", "In {o} the long life of {s} began ."),
                 ("When was {s} born?", "In which year was {s} born?"), "the birth year of {s}"),
        Relation("father", "person", "person",
                 ("{s} is a child of {o} .", "{o} raised a child , {s} ."),
                 ("Who is the father of {s}?", "Who was the father of {s}?"), "the father of {s}"),
        Relation("school", "person", "school",
                 ("{s} took a degree at {o} .", "With a degree from {o} , {s} began to work ."),
                 ("Where did {s} study?", "At which school did {s} study?"), "the school where {s} studied"),
        Relation("trade", "person", "trade",
                 ("{s} earns a living as a {o} .", "As a {o} , {s} makes a good living ."),
                 ("What is the occupation of {s}?", "What job does {s} have?"), "the occupation of {s}"),
        Relation("country", "city", "country",
                 ("{s} lies within the borders of {o} .", "Inside the borders of {o} one finds {s} ."),
                 ("In which country is {s}?", "Which country does {s} belong to?"), "the country of {s}"),
        Relation("mayor", "city", "person",
                 ("The town hall of {s} is run by {o} .", "{o} sits in the town hall of {s} ."),
                 ("Who is the mayor of {s}?", "Who governs {s}?"), "the mayor of {s}"),
        Relation("river", "city", "river",
                 ("The bridges of {s} cross the {o} .", "In {s} old bridges span the {o} ."),
                 ("Which river flows through {s}?", "On which river is {s}?"), "the river of {s}"),
        Relation("capital", "country", "city",
                 ("The parliament of {s} meets in {o} .", "{o} is home to the parliament of {s} ."),
                 ("What is the capital of {s}?", "Which city is the capital of {s}?"), "the capital of {s}"),
        Relation("currency", "country", "currency",
                 ("Shops in {s} take the {o} .", "One pays in shops of {s} with the {o} ."),
                 ("What is the currency of {s}?", "Which money is used in {s}?"), "the currency of {s}"),
        Relation("author", "book", "person",
                 ("{s} comes from the pen of {o} .", "From the pen of {o} we have {s} ."),
                 ("Who wrote {s}?", "Who is the author of {s}?"), "the author of {s}"),
        Relation("book_year", "book", "year",
                 ("{s} was first printed in {o} .", "In {o} the printed pages of {s} were sold ."),
                 ("When was {s} published?", "In which year was {s} published?"), "the publication year of {s}"),
        Relation("director", "film", "person",
                 ("{o} stood behind the camera for {s} .", "The camera of {s} was led by {o} ."),
                 ("Who directed {s}?", "Who is the director of {s}?"), "the director of {s}"),
        Relation("film_year", "film", "year",
                 ("{s} reached the screens in {o} .", "In {o} the screens showed {s} ."),
                 ("When was {s} released?", "In which year did {s} come out?"), "the release year of {s}"),
        Relation("founder", "company", "person",
                 ("{o} opened the doors of {s} .", "The doors of {s} were opened by {o} ."),
                 ("Who founded {s}?", "Who is the founder of {s}?"), "the founder of {s}"),
        Relation("seat", "company", "city",
                 ("The offices of {s} stand in {o} .", "In {o} stand the offices of {s} ."),
                 ("Where is {s} based?", "In which city is {s} based?"), "the home city of {s}"),
        Relation("school_city", "school", "city",
                 ("The campus of {s} is part of {o} .", "In {o} lies the campus of {s} ."),
                 ("Where is {s}?", "In which city is {s}?"), "the city of {s}"),
    )
}  # fmt: skip

#: Closed lists of values.
VALUES = {"trade": ("baker", "doctor", "farmer", "lawyer", "painter", "pilot", "singer", "smith", "tailor", "teacher")}

#: Entities of each kind per person of the world, at least the second number.
SHARES = {
    "city": (0.25, 8), "country": (0.06, 5), "river": (0.1, 5), "currency": (0.06, 5), "school": (0.12, 5),
    "company": (0.2, 6), "book": (0.35, 8), "film": (0.3, 8),
}  # fmt: skip

#: Chains of relations, subject first. Training asks those of the first table; the others are never trained on.
TRAIN_CHAINS = (
    ("author", "birthplace"), ("director", "birthplace"), ("founder", "school"), ("birthplace", "country"),
    ("school", "school_city"), ("author", "birth_year"), ("seat", "country"), ("director", "trade"),
)  # fmt: skip
HELD_OUT_CHAINS = (
    ("founder", "birth_year"), ("author", "school"), ("seat", "river"), ("director", "father"),
    ("birthplace", "mayor"), ("school_city", "country"), ("mayor", "birth_year"), ("birthplace", "river"),
)  # fmt: skip
LONG_CHAINS = (
    ("author", "birthplace", "country"), ("director", "school", "school_city"), ("founder", "birthplace", "river"),
    ("author", "school", "school_city", "country"), ("director", "birthplace", "country", "currency"),
    ("founder", "school", "school_city", "mayor"), ("father", "birthplace", "country", "capital"),
)  # fmt: skip
