"""Our own ALFWorld games: layouts, generator, engine check, the bundled set, and the expert that plays them."""
