"""The pass forward: steps one after the other, and what must be as it was when one of them is redone."""
