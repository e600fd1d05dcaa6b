"""Equations for one-dimensional fields, called as (t, u): right-hand sides for ``anodev2.odeint``."""

from .advection import Advection
from .grid import Grid1D

__all__ = ["Advection", "Grid1D"]
