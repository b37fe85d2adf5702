"""verl 0.9: trainer modes that shape advantages, an agent loop with a hindsight teacher, a plug-in, a check."""
