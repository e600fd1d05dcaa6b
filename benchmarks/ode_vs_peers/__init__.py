"""Error control against torchdiffeq, scipy and diffrax on DETEST and stiff problems; see its ``--help``."""
