"""The credit probe: how much of each method's advantage lands on the one turn that decided."""
