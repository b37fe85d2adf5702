"""Passages for queries: an index on disk or in memory, or a server that speaks the Search-R1 API; no torch here."""

from stepopsd.retrieval.base import Passage, Retriever, RetrieverError
from stepopsd.retrieval.opening import open_retriever

__all__ = ["Passage", "Retriever", "RetrieverError", "open_retriever"]
