"""Text environments behind one protocol; no torch here."""
