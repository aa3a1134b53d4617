"""Programs that run the peers, each in a process of its own and in the peers' own environment.

They must not import Nestling, which is not installed there; what they are to do comes as JSON (``turns``).
"""
