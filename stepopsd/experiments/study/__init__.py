"""Studies: methods × seeds × environments from one YAML file; resumable, shared between workers, one table."""
