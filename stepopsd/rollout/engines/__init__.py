"""Engines sample tokens; each is one file and is imported only when it is used."""
