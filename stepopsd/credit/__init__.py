"""Credit-assignment methods, one per file, behind one protocol."""
