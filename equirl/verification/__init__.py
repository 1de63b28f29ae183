"""Is the symmetry that an environment claims real, and which are there: `check_symmetry` and `discover_symmetries`."""
