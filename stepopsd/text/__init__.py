"""Text beside token ids: hindsight blocks and the tokens of character ranges; no torch."""
